(** Q8: b_q's gradient is a covariance of values and keys, and so b_q is limited in training too. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias QueryBias.
Open Scope R_scope.

(** The mean and the covariance of numbers x_j, y_j under weights P. *)
Definition mean (m : nat) (P x : vec) : R := sum m (fun j => P j * x j).
Definition covariance (m : nat) (P x y : vec) : R := sum m (fun j => P j * ((x j - mean m P x) * (y j - mean m P y))).

(** Centring one side is enough. *)
Lemma covariance_one_side m P x y :
  sum m P = 1 -> covariance m P x y = sum m (fun j => P j * (x j * (y j - mean m P y))).
Proof.
  intros H1. unfold covariance.
  rewrite (sum_ext m _ (fun j => P j * (x j * (y j - mean m P y)) - mean m P x * (P j * y j - P j * mean m P y))) by (intros; ring).
  rewrite (sum_minus m (fun j => P j * (x j * (y j - mean m P y)))), sum_scal, sum_minus, sum_scal_r, H1. fold (mean m P y). ring.
Qed.

(** ∂O_i/∂b_q along u is s Σ_j P_ij (v_j − O_i) (k_j − k̄_i)·u, for every b_q, b_k, b_v and every mask. *)
Theorem Q8_covariance H bq bk bv i (u : vec) c :
  sees (keys H) (mask H i) ->
  derivable_pt_lim (fun t => output H (add bq (scale_by t u)) bk bv i c) 0
    (scale H * covariance (keys H) (weights H bq bk i) (fun j => value H j c + bv c) (fun j => dot (dims H) (key H j) u)).
Proof.
  intros S. set (P := weights H bq bk i). set (x := fun j => value H j c + bv c). set (y := fun j => dot (dims H) (key H j) u).
  assert (start : add bq (scale_by 0 u) = bq) by (extensionality a; unfold add, scale_by; ring).
  assert (D : derivable_pt_lim (fun t => output H (add bq (scale_by t u)) zero bv i c) 0
     (sum (keys H) (fun j => P j * (scale H * y j - sum (keys H) (fun l => P l * (scale H * y l))) * x j))).
  { unfold output, mixture.
    apply (derive_sum (keys H) (fun j t => weights H (add bq (scale_by t u)) zero i j * x j)). intros j Hj.
    apply (derive_ext (fun t => x j * weights H (add bq (scale_by t u)) zero i j)); [intros; ring|].
    replace (P j * (scale H * y j - sum (keys H) (fun l => P l * (scale H * y l))) * x j)
      with (x j * (P j * (scale H * y j - sum (keys H) (fun l => P l * (scale H * y l))))) by ring.
    apply (derivable_pt_lim_scal (fun t => weights H (add bq (scale_by t u)) zero i j)).
    assert (Q := softmax_derivative (keys H) (mask H i) (fun t => logit H (add bq (scale_by t u)) zero i) (fun l => scale H * y l) j S Hj).
    simpl in Q. rewrite start in Q. unfold P. rewrite K1_no_effect. apply Q. intros l _.
    apply (derive_ext (fun t => logit H bq zero i l + t * (scale H * y l))); [|apply derive_affine].
    intros t. rewrite (logit_query_bias H (add bq _)), (logit_query_bias H bq). rewrite dot_add_r, dot_scale_r.
    unfold y. rewrite !(dot_add_l _ (key H l)), !dot_zero_l. ring. }
  refine (derive_is _ _ _ _ (derive_ext _ _ _ _ _ D) _).
  - intros t. unfold output. now rewrite (K1_no_effect H _ bk).
  - assert (H1 : sum (keys H) P = 1) by now apply softmax_sum.
    rewrite covariance_one_side, <- sum_scal by easy. apply sum_ext. intros j _.
    rewrite (sum_ext (keys H) (fun l => P l * (scale H * y l)) (fun l => scale H * (P l * y l))) by (intros; ring).
    rewrite sum_scal. fold (mean (keys H) P y). ring.
Qed.

(** Weights that are not negative are all 0, or one is positive. *)
Lemma zero_or_not_pos m P : (forall j, (j < m)%nat -> 0 <= P j) -> (forall j, (j < m)%nat -> P j = 0) \/ exists j, (j < m)%nat /\ 0 < P j.
Proof.
  intros HP. induction m as [|m IH]; [left; lia|]. destruct IH as [Z|(j & Hj & Pj)]; [auto| |right; exists j; split; [lia|easy]].
  destruct (HP m) as [Pm|Zm]; [lia|right; exists m; split; [lia|easy]|left].
  intros j Hj. destruct (Nat.eq_dec j m) as [->|]; [now symmetry|apply Z; lia].
Qed.

(** A variance is at most a quarter of the squared range (Popoviciu); only what has weight counts. *)
Lemma variance_bound m P x range :
  (forall j, (j < m)%nat -> 0 <= P j) -> sum m P = 1 ->
  (forall j l, (j < m)%nat -> (l < m)%nat -> 0 < P j -> 0 < P l -> x j - x l <= range) ->
  covariance m P x x <= range * range / 4.
Proof.
  intros HP H1 R.
  assert (Ex : exists j, (j < m)%nat /\ 0 < P j).
  { destruct (zero_or_not_pos m P HP) as [Z|E]; [|easy]. rewrite sum_zero in H1 by easy. lra. }
  destruct (least_seen m P x Ex) as (p & Hp & Pp & L). set (lo := x p) in *.
  set (mu := mean m P x).
  assert (S : sum m (fun j => P j * ((lo + range - x j) * (x j - lo))) = (lo + range - mu) * (mu - lo) - covariance m P x x).
  { rewrite (covariance_one_side m P x x H1). fold mu.
    rewrite (sum_ext m _ (fun j => (lo + range + lo) * (P j * x j) - mu * (P j * x j) - (lo + range) * lo * P j - P j * (x j * (x j - mu)))) by (intros; ring).
    rewrite !sum_minus, !sum_scal, H1. fold (mean m P x). fold mu. ring. }
  assert (0 <= sum m (fun j => P j * ((lo + range - x j) * (x j - lo)))).
  { apply sum_nonneg. intros j Hj. destruct (HP j Hj) as [Pj|Z]; [|rewrite <- Z; lra].
    assert (A := R j p Hj Hp Pj Pp). assert (B := L j Hj Pj). fold lo in A.
    apply Rmult_le_pos; [lra|]. apply Rmult_le_pos; lra. }
  assert (0 <= (lo + range - mu - (mu - lo)) * (lo + range - mu - (mu - lo))) by apply Rle_0_sqr. nra.
Qed.

(** Grüss: a covariance is at most a quarter of the product of the two ranges. *)
Theorem Q8_gruss m P x y rx ry :
  (forall j, (j < m)%nat -> 0 <= P j) -> sum m P = 1 -> 0 <= rx -> 0 <= ry ->
  (forall j l, (j < m)%nat -> (l < m)%nat -> 0 < P j -> 0 < P l -> x j - x l <= rx) ->
  (forall j l, (j < m)%nat -> (l < m)%nat -> 0 < P j -> 0 < P l -> y j - y l <= ry) ->
  Rabs (covariance m P x y) <= rx * ry / 4.
Proof.
  intros HP H1 Hx Hy Rx Ry.
  assert (E : forall f g, covariance m P f g = dot m (fun j => sqrt (P j) * (f j - mean m P f)) (fun j => sqrt (P j) * (g j - mean m P g))).
  { intros f g. apply sum_ext. intros j Hj. rewrite <- (sqrt_sqrt (P j)) at 1 by auto. ring. }
  assert (A := variance_bound m P x rx HP H1 Rx). assert (B := variance_bound m P y ry HP H1 Ry).
  assert (C := cauchy_schwarz_square m (fun j => sqrt (P j) * (x j - mean m P x)) (fun j => sqrt (P j) * (y j - mean m P y))).
  rewrite <- !E in C.
  assert (V : 0 <= covariance m P x x) by (rewrite E; apply dot_self_nonneg).
  assert (W : 0 <= covariance m P y y) by (rewrite E; apply dot_self_nonneg).
  assert (D : 0 <= rx * ry / 4) by (assert (0 <= rx * ry) by (now apply Rmult_le_pos); lra).
  rewrite <- (Rabs_pos_eq _ D). apply Rsqr_le_abs_0. unfold Rsqr.
  eapply Rle_trans; [exact C|].
  replace (rx * ry / 4 * (rx * ry / 4)) with (rx * rx / 4 * (ry * ry / 4)) by field. now apply Rmult_le_compat.
Qed.

(** The diameter of vectors of d numbers, over the keys that a row sees, in the Euclidean norm. *)
Definition within (m d : nat) (mu : vec) (v : mat) (diam : R) : Prop :=
  forall j l, (j < m)%nat -> (l < m)%nat -> 0 < mu j -> 0 < mu l -> norm d (fun a => v j a - v l a) <= diam.

(** The projections on a direction then have a range of at most the diameter times the direction's length. *)
Lemma projected m d mu v diam u :
  within m d mu v diam ->
  forall j l, (j < m)%nat -> (l < m)%nat -> 0 < mu j -> 0 < mu l -> dot d u (v j) - dot d u (v l) <= diam * norm d u.
Proof.
  intros W j l Hj Hl Pj Pl. rewrite <- dot_sub_r. assert (C := cauchy_schwarz d u (fun a => v j a - v l a)).
  apply abs_bounds in C. assert (N := norm_nonneg d u). assert (Q := W j l Hj Hl Pj Pl).
  assert (norm d u * norm d (fun a => v j a - v l a) <= norm d u * diam) by now apply Rmult_le_compat_l. lra.
Qed.

(** A weight is positive only where the key is seen. *)
Lemma weight_seen m mu z j : sees m mu -> (j < m)%nat -> 0 < softmax m mu z j -> 0 < mu j.
Proof.
  intros S Hj P. destruct (proj1 S j Hj) as [|Z]; [easy|]. unfold softmax in P. rewrite <- Z in P. unfold Rdiv in P. lra.
Qed.

(** ‖∂O_i/∂b_q‖ ≤ (s/4) diam(K) diam(V), diameters over the keys that the row sees: e·(∂O_i/∂b_q) u for all directions e, u. *)
Theorem Q8_bound H bq bk bv i (e u : vec) dk dv :
  sees (keys H) (mask H i) -> 0 <= dk -> 0 <= dv ->
  within (keys H) (dims H) (mask H i) (key H) dk -> within (keys H) (dims H) (mask H i) (value H) dv ->
  derivable_pt_lim (fun t => dot (dims H) e (output H (add bq (scale_by t u)) bk bv i)) 0
    (scale H * covariance (keys H) (weights H bq bk i) (fun j => dot (dims H) e (value H j)) (fun j => dot (dims H) u (key H j)))
  /\ Rabs (scale H * covariance (keys H) (weights H bq bk i) (fun j => dot (dims H) e (value H j)) (fun j => dot (dims H) u (key H j)))
     <= Rabs (scale H) / 4 * dk * dv * norm (dims H) e * norm (dims H) u.
Proof.
  intros S Hk Hv K V. set (P := weights H bq bk i). set (y := fun j => dot (dims H) u (key H j)).
  assert (H1 : sum (keys H) P = 1) by now apply softmax_sum.
  assert (HP : forall j, (j < keys H)%nat -> 0 <= P j) by (intros; now apply softmax_nonneg).
  split.
  - assert (D : derivable_pt_lim (fun t => sum (dims H) (fun c => e c * output H (add bq (scale_by t u)) bk bv i c)) 0
      (sum (dims H) (fun c => e c * (scale H * covariance (keys H) P (fun j => value H j c + bv c) y)))).
    { apply (derive_sum (dims H) (fun c t => e c * output H (add bq (scale_by t u)) bk bv i c)). intros c _.
      apply (derivable_pt_lim_scal (fun t => output H (add bq (scale_by t u)) bk bv i c)).
      assert (Q := Q8_covariance H bq bk bv i u c S).
      replace y with (fun j => dot (dims H) (key H j) u) by (extensionality j; apply dot_comm). exact Q. }
    refine (derive_is _ _ _ _ D _).
    rewrite (covariance_one_side _ _ _ _ H1), <- sum_scal.
    rewrite (sum_ext (dims H) _ (fun c => sum (keys H) (fun j => scale H * (P j * (e c * (value H j c + bv c) * (y j - mean (keys H) P y)))))).
    2: { intros c _. rewrite (covariance_one_side _ _ _ _ H1), <- !sum_scal. apply sum_ext. intros. ring. }
    rewrite sum_swap.
    rewrite (sum_ext (keys H) _ (fun j => scale H * (P j * (dot (dims H) e (value H j) * (y j - mean (keys H) P y)))
       + scale H * dot (dims H) e bv * (P j * y j - mean (keys H) P y * P j))).
    2: { intros j _. rewrite sum_scal, sum_scal, sum_scal_r.
         rewrite (sum_ext (dims H) (fun c => e c * (value H j c + bv c)) (fun c => e c * value H j c + e c * bv c)) by (intros; ring).
         rewrite sum_plus. fold (dot (dims H) e (value H j)). fold (dot (dims H) e bv). ring. }
    rewrite sum_plus, (sum_scal (keys H) (scale H * dot (dims H) e bv)), sum_minus, (sum_scal (keys H) (mean (keys H) P y)), H1.
    fold (mean (keys H) P y). ring.
  - rewrite Rabs_mult.
    replace (Rabs (scale H) / 4 * dk * dv * norm (dims H) e * norm (dims H) u)
      with (Rabs (scale H) * (dv * norm (dims H) e * (dk * norm (dims H) u) / 4)) by field.
    apply Rmult_le_compat_l; [apply Rabs_pos|].
    apply Q8_gruss; auto; try (apply Rmult_le_pos; auto; apply norm_nonneg);
      intros j l Hj Hl Pj Pl; apply (weight_seen _ _ _ _ S Hj) in Pj; apply (weight_seen _ _ _ _ S Hl) in Pl.
    + now apply (projected _ _ _ _ _ e V).
    + now apply (projected _ _ _ _ _ u K).
Qed.

(** Hence |∂L/∂b_q · u| ≤ (s/4) diam(K) diam(V) ‖u‖ Σ_i ‖g_i‖, for every differentiable loss of the outputs of n rows with
    gradients g_i, all of which see a key. *)
Theorem Q8_loss H n bq bk bv (loss : mat -> R) (G : mat) (u : vec) dk dv slope :
  (forall i, sees (keys H) (mask H i)) -> 0 <= dk -> 0 <= dv ->
  (forall i, within (keys H) (dims H) (mask H i) (key H) dk) -> (forall i, within (keys H) (dims H) (mask H i) (value H) dv) ->
  gradient n (dims H) loss (output H bq bk bv) G ->
  derivable_pt_lim (fun t => loss (output H (add bq (scale_by t u)) bk bv)) 0 slope ->
  Rabs slope <= Rabs (scale H) / 4 * dk * dv * norm (dims H) u * sum n (fun i => norm (dims H) (G i)).
Proof.
  intros S Hk Hv K V HG HD.
  set (speed := fun i c => scale H * covariance (keys H) (weights H bq bk i) (fun j => value H j c + bv c) (fun j => dot (dims H) (key H j) u)).
  assert (start : add bq (scale_by 0 u) = bq) by (extensionality a; unfold add, scale_by; ring).
  assert (A : derivable_pt_lim (fun t => loss (output H (add bq (scale_by t u)) bk bv)) 0 (sum n (fun i => dot (dims H) (G i) (speed i)))).
  { apply (HG (fun t => output H (add bq (scale_by t u)) bk bv) speed); [intros; now rewrite start|]. intros i c _ _. now apply Q8_covariance. }
  rewrite (uniqueness_limite _ _ _ _ HD A). eapply Rle_trans; [apply sum_abs|]. rewrite <- sum_scal. apply sum_le. intros i _.
  destruct (Q8_bound H bq bk bv i (G i) u dk dv (S i) Hk Hv (K i) (V i)) as [D B].
  replace (dot (dims H) (G i) (speed i)) with
    (scale H * covariance (keys H) (weights H bq bk i) (fun j => dot (dims H) (G i) (value H j)) (fun j => dot (dims H) u (key H j))).
  - eapply Rle_trans; [exact B|]. right. ring.
  - apply (uniqueness_limite (fun t => dot (dims H) (G i) (output H (add bq (scale_by t u)) bk bv i)) 0); [exact D|].
    apply (derive_sum (dims H) (fun c t => G i c * output H (add bq (scale_by t u)) bk bv i c)). intros c _.
    apply (derivable_pt_lim_scal (fun t => output H (add bq (scale_by t u)) bk bv i c)). now apply Q8_covariance.
Qed.

(** The factor 1/4 is attained: two keys 0 and 1 with values 0 and 1, and a query 0, which gives both the weight 1/2. *)
Theorem Q8_attained s :
  let H := {| queries := 1; keys := 2; dims := 1; query := fun _ _ => 0; key := fun j _ => INR j; value := fun j _ => INR j;
              mask := fun _ _ => 1; scale := s |} in
  derivable_pt_lim (fun t => output H (add zero (scale_by t (unit 0%nat))) zero zero 0%nat 0%nat) 0 (s / 4)
  /\ within 2 1 (mask H 0%nat) (key H) 1 /\ within 2 1 (mask H 0%nat) (value H) 1.
Proof.
  intros H.
  assert (S : sees (keys H) (mask H 0%nat)) by (split; [intros; simpl; lra|exists 0%nat; simpl; split; [lia|lra]]).
  split.
  - refine (derive_is _ _ _ _ (Q8_covariance H zero zero zero 0%nat (unit 0%nat) 0%nat S) _).
    assert (Z : forall j, logit H zero zero 0%nat j = 0) by (intros; unfold logit, dot, add, zero; simpl; ring).
    assert (W : forall j, weights H zero zero 0%nat j = 1 / 2).
    { intros j. unfold weights, softmax. simpl. rewrite !Z, exp_0. field. }
    unfold covariance, mean. simpl. rewrite !W. unfold dot, unit, zero. simpl. field.
  - assert (Q : within 2 1 (mask H 0%nat) (key H) 1); [|split; exact Q].
    intros j l Hj Hl _ _. unfold norm, dot. simpl. rewrite <- (sqrt_square 1) by lra. apply sqrt_le_1_alt.
    destruct j as [|[|]], l as [|[|]]; try lia; simpl; lra.
Qed.
