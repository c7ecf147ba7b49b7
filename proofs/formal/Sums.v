(** Finite sums of real numbers, inner products, and derivatives along curves: the tools of every other file. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
Open Scope R_scope.

Definition vec := nat -> R.
Definition mat := nat -> nat -> R.

(** [sum n f] is f 0 + … + f (n − 1). *)
Fixpoint sum (n : nat) (f : nat -> R) : R :=
  match n with O => 0 | S p => sum p f + f p end.

(** The inner product of the first d entries. *)
Definition dot (d : nat) (u v : vec) : R := sum d (fun a => u a * v a).

(** The squared length, and the length. *)
Definition norm (d : nat) (u : vec) : R := sqrt (dot d u u).

Definition zero : vec := fun _ => 0.
Definition add (u v : vec) : vec := fun a => u a + v a.
Definition scale_by (t : R) (u : vec) : vec := fun a => t * u a.

(** The unit vector of entry p. *)
Definition unit (p : nat) : vec := fun a => if Nat.eqb a p then 1 else 0.

(** Equal terms give equal sums. *)
Lemma sum_ext n f g : (forall j, (j < n)%nat -> f j = g j) -> sum n f = sum n g.
Proof. induction n; intros E; simpl; [easy|]. rewrite IHn, E by (intros; try apply E; lia). easy. Qed.

(** A sum of sums is the sum of the two. *)
Lemma sum_plus n f g : sum n (fun j => f j + g j) = sum n f + sum n g.
Proof. induction n; simpl; lra. Qed.

(** The same for differences. *)
Lemma sum_minus n f g : sum n (fun j => f j - g j) = sum n f - sum n g.
Proof. induction n; simpl; lra. Qed.

(** A common factor on the left moves out. *)
Lemma sum_scal n c f : sum n (fun j => c * f j) = c * sum n f.
Proof. induction n; simpl; [|rewrite IHn]; lra. Qed.

(** A common factor on the right moves out. *)
Lemma sum_scal_r n c f : sum n (fun j => f j * c) = sum n f * c.
Proof. induction n; simpl; [|rewrite IHn]; lra. Qed.

(** A common divisor moves out. *)
Lemma sum_div n c f : sum n (fun j => f j / c) = sum n f / c.
Proof. unfold Rdiv. apply sum_scal_r. Qed.

(** n equal terms. *)
Lemma sum_const n c : sum n (fun _ => c) = INR n * c.
Proof. induction n; [simpl; lra|]. rewrite S_INR. simpl. rewrite IHn. lra. Qed.

(** Terms that are 0 sum to 0. *)
Lemma sum_zero n f : (forall j, (j < n)%nat -> f j = 0) -> sum n f = 0.
Proof. intros E. rewrite (sum_ext n f (fun _ => 0) E), sum_const. lra. Qed.

(** The order of two sums does not matter. *)
Lemma sum_swap n m (f : mat) : sum n (fun i => sum m (fun j => f i j)) = sum m (fun j => sum n (fun i => f i j)).
Proof. induction n; simpl; [now rewrite sum_zero|]. now rewrite IHn, <- sum_plus. Qed.

(** Larger terms give a larger sum. *)
Lemma sum_le n f g : (forall j, (j < n)%nat -> f j <= g j) -> sum n f <= sum n g.
Proof. induction n; intros E; simpl; [lra|]. apply Rplus_le_compat; [apply IHn; auto|apply E; lia]. Qed.

(** Terms that are not negative sum to what is not negative. *)
Lemma sum_nonneg n f : (forall j, (j < n)%nat -> 0 <= f j) -> 0 <= sum n f.
Proof. intros E. rewrite <- (sum_zero n (fun _ => 0)) by easy. now apply sum_le. Qed.

(** Such a sum is at least each of its terms. *)
Lemma sum_ge_term n f p : (forall j, (j < n)%nat -> 0 <= f j) -> (p < n)%nat -> f p <= sum n f.
Proof.
  induction n; intros E Hp; [lia|]. simpl.
  destruct (Nat.eq_dec p n) as [->|]; [assert (0 <= sum n f) by (apply sum_nonneg; auto); lra|].
  assert (f p <= sum n f) by (apply IHn; auto; lia). assert (0 <= f n) by (apply E; lia). lra.
Qed.

(** And positive as soon as one term is. *)
Lemma sum_pos n f : (forall j, (j < n)%nat -> 0 <= f j) -> (exists j, (j < n)%nat /\ 0 < f j) -> 0 < sum n f.
Proof. intros E (p & Hp & H). assert (f p <= sum n f) by now apply sum_ge_term. lra. Qed.

(** If such a sum is 0, so is every term. *)
Lemma sum_zero_inv n f p : (forall j, (j < n)%nat -> 0 <= f j) -> sum n f = 0 -> (p < n)%nat -> f p = 0.
Proof. intros E H Hp. assert (f p <= sum n f) by now apply sum_ge_term. assert (0 <= f p) by auto. lra. Qed.

(** The triangle inequality. *)
Lemma sum_abs n f : Rabs (sum n f) <= sum n (fun j => Rabs (f j)).
Proof.
  induction n; simpl; [rewrite Rabs_R0; lra|].
  eapply Rle_trans; [apply Rabs_triang|]. lra.
Qed.

(** The product of two sums is a double sum. *)
Lemma sum_product n m f g : sum n f * sum m g = sum n (fun i => sum m (fun j => f i * g j)).
Proof.
  rewrite <- sum_scal_r. apply sum_ext. intros. now rewrite sum_scal.
Qed.

(** A unit vector picks one term. *)
Lemma sum_unit n p f : (p < n)%nat -> sum n (fun j => unit p j * f j) = f p.
Proof.
  unfold unit. induction n; intros H; [lia|]. simpl.
  destruct (Nat.eq_dec p n) as [->|Hn].
  - rewrite Nat.eqb_refl, sum_zero; [lra|]. intros j Hj.
    destruct (Nat.eqb_spec j n); [lia|lra].
  - rewrite IHn by lia. destruct (Nat.eqb_spec n p); [lia|lra].
Qed.

(** The inner product is symmetric. *)
Lemma dot_comm d u v : dot d u v = dot d v u.
Proof. apply sum_ext. intros. lra. Qed.

(** It is additive on the right, *)
Lemma dot_add_r d u v w : dot d u (add v w) = dot d u v + dot d u w.
Proof. unfold dot, add. rewrite <- sum_plus. apply sum_ext. intros. lra. Qed.

(** and on the left. *)
Lemma dot_add_l d u v w : dot d (add u v) w = dot d u w + dot d v w.
Proof. now rewrite dot_comm, dot_add_r, !(dot_comm d w). Qed.

(** A factor moves out from the right, *)
Lemma dot_scale_r d t u v : dot d u (scale_by t v) = t * dot d u v.
Proof. unfold dot, scale_by. rewrite <- sum_scal. apply sum_ext. intros. lra. Qed.

(** and from the left. *)
Lemma dot_scale_l d t u v : dot d (scale_by t u) v = t * dot d u v.
Proof. now rewrite dot_comm, dot_scale_r, dot_comm. Qed.

(** With 0 it is 0, *)
Lemma dot_zero_r d u : dot d u zero = 0.
Proof. apply sum_zero. unfold zero. intros. lra. Qed.

(** on either side. *)
Lemma dot_zero_l d u : dot d zero u = 0.
Proof. now rewrite dot_comm, dot_zero_r. Qed.

(** With a unit vector it is one entry. *)
Lemma dot_unit_r d u p : (p < d)%nat -> dot d u (unit p) = u p.
Proof. intros H. rewrite dot_comm. unfold dot. now rewrite sum_unit. Qed.

(** It is additive for differences, *)
Lemma dot_sub_r d u v w : dot d u (fun a => v a - w a) = dot d u v - dot d u w.
Proof. unfold dot. rewrite <- sum_minus. apply sum_ext. intros. lra. Qed.

(** and for sums of n vectors. *)
Lemma dot_sum_r d n u (f : mat) : dot d u (fun a => sum n (fun j => f j a)) = sum n (fun j => dot d u (f j)).
Proof. unfold dot. rewrite sum_swap. apply sum_ext. intros. now rewrite sum_scal. Qed.

(** A squared length is not negative. *)
Lemma dot_self_nonneg d u : 0 <= dot d u u.
Proof. apply sum_nonneg. intros. apply Rle_0_sqr. Qed.

(** A vector of squared length 0 is 0. *)
Lemma dot_self_zero d u : dot d u u = 0 -> forall a, (a < d)%nat -> u a = 0.
Proof.
  intros H a Ha.
  assert (u a * u a = 0) by (apply (sum_zero_inv d (fun c => u c * u c)); auto; intros; apply Rle_0_sqr). nra.
Qed.

(** Nor is a length. *)
Lemma norm_nonneg d u : 0 <= norm d u.
Proof. apply sqrt_pos. Qed.

(** The length's square is the squared length. *)
Lemma norm_square d u : norm d u * norm d u = dot d u u.
Proof. apply sqrt_sqrt, dot_self_nonneg. Qed.

(** Cauchy and Schwarz, squared: the quadratic ‖u·(v·v) − v·(u·v)‖² is not negative. *)
Lemma cauchy_schwarz_square d u v : dot d u v * dot d u v <= dot d u u * dot d v v.
Proof.
  set (A := dot d u u). set (B := dot d v v). set (C := dot d u v).
  assert (HB : 0 <= B) by apply dot_self_nonneg.
  assert (E : 0 <= B * (A * B - C * C)).
  { replace (B * (A * B - C * C)) with (dot d (fun a => B * u a - C * v a) (fun a => B * u a - C * v a)).
    - apply dot_self_nonneg.
    - rewrite dot_sub_r. change (fun a => B * u a) with (scale_by B u). change (fun a => C * v a) with (scale_by C v).
      rewrite !dot_scale_r, !(dot_comm d (fun a => B * u a - C * v a)), !dot_sub_r.
      change (fun a => B * u a) with (scale_by B u). change (fun a => C * v a) with (scale_by C v).
      rewrite !dot_scale_r, (dot_comm d v u). fold A B C. ring. }
  destruct (Req_dec B 0) as [Z|N]; [|nra].
  assert (C = 0) as -> by (unfold C; apply sum_zero; intros; rewrite (dot_self_zero d v Z) by easy; lra).
  rewrite Z. lra.
Qed.

(** |u·v| ≤ ‖u‖ ‖v‖. *)
Lemma cauchy_schwarz d u v : Rabs (dot d u v) <= norm d u * norm d v.
Proof.
  rewrite <- (Rabs_pos_eq (norm d u * norm d v)) by (apply Rmult_le_pos; apply norm_nonneg).
  apply Rsqr_le_abs_0. unfold Rsqr.
  replace (norm d u * norm d v * (norm d u * norm d v)) with ((norm d u * norm d u) * (norm d v * norm d v)) by ring.
  rewrite !norm_square. apply cauchy_schwarz_square.
Qed.

(** |x| ≤ a bounds x from both sides. *)
Lemma abs_bounds x a : Rabs x <= a -> - a <= x <= a.
Proof. unfold Rabs. destruct (Rcase_abs x); lra. Qed.

(** ** Derivatives *)

(** The derivative of a sum is the sum of the derivatives. *)
Lemma derive_sum n (f : nat -> R -> R) x g :
  (forall j, (j < n)%nat -> derivable_pt_lim (f j) x (g j)) -> derivable_pt_lim (fun t => sum n (fun j => f j t)) x (sum n g).
Proof.
  induction n; intros H; simpl; [apply derivable_pt_lim_const|].
  apply (derivable_pt_lim_plus (fun t => sum n (fun j => f j t)) (f n)); auto.
Qed.

(** Functions with the same values have the same derivative. *)
Lemma derive_ext (f g : R -> R) x l : (forall t, f t = g t) -> derivable_pt_lim f x l -> derivable_pt_lim g x l.
Proof. intros E H eps He. destruct (H eps He) as [del D]. exists del. intros. rewrite <- !E. now apply D. Qed.

(** A derivative may be written in another way. *)
Lemma derive_is (f : R -> R) x l l' : derivable_pt_lim f x l -> l = l' -> derivable_pt_lim f x l'.
Proof. now intros H <-. Qed.

(** A function that does not change has derivative 0. *)
Lemma derive_constant (f : R -> R) x : (forall t, f t = f x) -> derivable_pt_lim f x 0.
Proof. intros E. apply (derive_ext (fun _ => f x)); [easy|]. apply derivable_pt_lim_const. Qed.

(** The derivative of a + t b. *)
Lemma derive_affine a b x : derivable_pt_lim (fun t => a + t * b) x b.
Proof.
  intros eps He. exists (mkposreal 1 Rlt_0_1). intros h Hh _.
  replace ((a + (x + h) * b - (a + x * b)) / h - b) with 0 by (field; easy). now rewrite Rabs_R0.
Qed.

(** The gradient of a loss L of n×d numbers at O is g: along every smooth curve through O the derivative of L is
    the sum of g times the curve's velocity. This is the chain rule; [frechet_gradient] shows that every differentiable
    loss has it. *)
Definition gradient (n d : nat) (L : mat -> R) (O g : mat) : Prop :=
  forall (curve : R -> mat) (velocity : mat),
    (forall i c, curve 0 i c = O i c) ->
    (forall i c, (i < n)%nat -> (c < d)%nat -> derivable_pt_lim (fun t => curve t i c) 0 (velocity i c)) ->
    derivable_pt_lim (fun t => L (curve t)) 0 (sum n (fun i => sum d (fun c => g i c * velocity i c))).

(** Differentiable in the usual sense: the error of the linear part is small against the change. *)
Definition frechet (n d : nat) (L : mat -> R) (O g : mat) : Prop :=
  forall eps, 0 < eps -> exists delta, 0 < delta /\ forall X : mat,
    (forall i c, (i < n)%nat -> (c < d)%nat -> Rabs (X i c - O i c) < delta) ->
    Rabs (L X - L O - sum n (fun i => sum d (fun c => g i c * (X i c - O i c))))
    <= eps * sum n (fun i => sum d (fun c => Rabs (X i c - O i c))).

(** Finitely many conditions that hold for small t hold together. *)
Lemma together n (C : nat -> R -> Prop) :
  (forall j, (j < n)%nat -> exists e, 0 < e /\ forall t, t <> 0 -> Rabs t < e -> C j t) ->
  exists e, 0 < e /\ forall t, t <> 0 -> Rabs t < e -> forall j, (j < n)%nat -> C j t.
Proof.
  induction n; intros H; [exists 1; split; [lra|lia]|].
  destruct IHn as (e & He & A); [auto|]. destruct (H n) as (e' & He' & B); [lia|].
  exists (Rmin e e'). split; [now apply Rmin_pos|]. intros t Ht Hm j Hj.
  assert (Rabs t < e /\ Rabs t < e') as [? ?] by (split; eapply Rlt_le_trans; eauto; [apply Rmin_l|apply Rmin_r]).
  destruct (Nat.eq_dec j n) as [->|]; [now apply B|apply A; auto; lia].
Qed.

(** A differentiable loss has a gradient in the sense used here. *)
Lemma frechet_gradient n d L O g : frechet n d L O g -> gradient n d L O g.
Proof.
  intros F curve E Start D eps Heps.
  assert (HO : curve 0 = O) by (extensionality i; extensionality c; apply Start).
  set (K := sum n (fun i => sum d (fun c => Rabs (E i c) + 1))).
  set (M := sum n (fun i => sum d (fun c => Rabs (g i c)))).
  assert (HK : 0 <= K).
  { repeat (apply sum_nonneg; intros). assert (0 <= Rabs (E j j0)) by apply Rabs_pos. lra. }
  assert (HM : 0 <= M) by (repeat (apply sum_nonneg; intros); apply Rabs_pos).
  destruct (F (eps / (2 * (K + 1)))) as (del & Hdel & HF). { apply Rdiv_lt_0_compat; lra. }
  set (eta := Rmin 1 (eps / (2 * (M + 1)))).
  assert (Heta : 0 < eta) by (apply Rmin_pos; [lra|apply Rdiv_lt_0_compat; lra]).
  assert (Hclose : exists e, 0 < e /\ forall t, t <> 0 -> Rabs t < e ->
     forall i, (i < n)%nat -> forall c, (c < d)%nat -> Rabs ((curve t i c - O i c) / t - E i c) < eta).
  { apply (together n (fun i t => forall c, (c < d)%nat -> Rabs ((curve t i c - O i c) / t - E i c) < eta)). intros i Hi.
    apply (together d (fun c t => Rabs ((curve t i c - O i c) / t - E i c) < eta)). intros c Hc.
    destruct (D i c Hi Hc eta Heta) as [e He]. exists e. split; [apply cond_pos|]. intros t Ht Hs.
    specialize (He t Ht Hs). now rewrite Rplus_0_l, Start in He. }
  destruct Hclose as (e & He & Close).
  assert (Hd : 0 < Rmin e (del / (K + 1))) by (apply Rmin_pos; [lra|apply Rdiv_lt_0_compat; lra]).
  exists (mkposreal _ Hd). intros t Ht Hs. simpl in Hs. rewrite Rplus_0_l, HO.
  assert (He1 : Rabs t < e) by (eapply Rlt_le_trans; [exact Hs|apply Rmin_l]).
  assert (He2 : Rabs t < del / (K + 1)) by (eapply Rlt_le_trans; [exact Hs|apply Rmin_r]).
  specialize (Close t Ht He1). assert (HT : 0 < Rabs t) by now apply Rabs_pos_lt.
  assert (Size : forall i c, (i < n)%nat -> (c < d)%nat -> Rabs (curve t i c - O i c) <= Rabs t * (Rabs (E i c) + 1)).
  { intros i c Hi Hc. specialize (Close i Hi c Hc).
    replace (curve t i c - O i c) with (t * (((curve t i c - O i c) / t - E i c) + E i c)) by (field; easy).
    rewrite Rabs_mult. apply Rmult_le_compat_l; [lra|]. eapply Rle_trans; [apply Rabs_triang|].
    assert (eta <= 1) by apply Rmin_l. lra. }
  assert (Total : sum n (fun i => sum d (fun c => Rabs (curve t i c - O i c))) <= Rabs t * K).
  { unfold K. rewrite <- sum_scal. apply sum_le. intros i Hi. rewrite <- sum_scal. apply sum_le. auto. }
  assert (Near : forall i c, (i < n)%nat -> (c < d)%nat -> Rabs (curve t i c - O i c) < del).
  { intros i c Hi Hc. eapply Rle_lt_trans; [|apply (Rmult_lt_compat_r (K + 1)) in He2; [|lra]].
    2: { unfold Rdiv in He2. rewrite Rmult_assoc, Rinv_l, Rmult_1_r in He2 by lra. exact He2. }
    eapply Rle_trans; [|eapply Rle_trans; [exact Total|apply Rmult_le_compat_l; lra]].
    eapply Rle_trans; [|apply (sum_ge_term n (fun i => sum d (fun c => Rabs (curve t i c - O i c))) i); auto].
    - apply (sum_ge_term d (fun c => Rabs (curve t i c - O i c))); auto. intros. apply Rabs_pos.
    - intros. apply sum_nonneg. intros. apply Rabs_pos. }
  specialize (HF (curve t) Near).
  set (lin := sum n (fun i => sum d (fun c => g i c * (curve t i c - O i c)))) in *.
  set (grad := sum n (fun i => sum d (fun c => g i c * E i c))).
  assert (Lin : Rabs (lin / t - grad) <= eta * M).
  { unfold lin, grad, M. rewrite <- sum_div, <- sum_minus, <- sum_scal. eapply Rle_trans; [apply sum_abs|].
    apply sum_le. intros i Hi. rewrite <- sum_div, <- sum_minus, <- sum_scal. eapply Rle_trans; [apply sum_abs|].
    apply sum_le. intros c Hc. replace (g i c * (curve t i c - O i c) / t - g i c * E i c)
      with (g i c * ((curve t i c - O i c) / t - E i c)) by (field; easy).
    rewrite Rabs_mult, Rmult_comm. apply Rmult_le_compat_r; [apply Rabs_pos|]. specialize (Close i Hi c Hc). lra. }
  replace ((L (curve t) - L O) / t - grad) with ((L (curve t) - L O - lin) / t + (lin / t - grad)) by (field; easy).
  eapply Rle_lt_trans; [apply Rabs_triang|].
  assert (A : Rabs ((L (curve t) - L O - lin) / t) <= eps / (2 * (K + 1)) * K).
  { unfold Rdiv at 1. rewrite Rabs_mult, Rabs_inv. apply (Rmult_le_reg_r (Rabs t)); [easy|].
    rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra. eapply Rle_trans; [exact HF|].
    rewrite Rmult_assoc, (Rmult_comm K). apply Rmult_le_compat_l; [|exact Total].
    apply Rlt_le, Rdiv_lt_0_compat; lra. }
  assert (B : eps / (2 * (K + 1)) * K <= eps / 2).
  { apply (Rmult_le_reg_r (2 * (K + 1))); [lra|]. replace (eps / (2 * (K + 1)) * K * (2 * (K + 1))) with (eps * K) by (field; lra).
    replace (eps / 2 * (2 * (K + 1))) with (eps * (K + 1)) by field. nra. }
  assert (C : eta * M < eps / 2).
  { assert (eta <= eps / (2 * (M + 1))) by apply Rmin_r.
    eapply Rle_lt_trans; [apply Rmult_le_compat_r; [easy|eassumption]|].
    apply (Rmult_lt_reg_r (2 * (M + 1))); [lra|]. replace (eps / (2 * (M + 1)) * M * (2 * (M + 1))) with (eps * M) by (field; lra).
    replace (eps / 2 * (2 * (M + 1))) with (eps * (M + 1)) by field. nra. }
  lra.
Qed.
