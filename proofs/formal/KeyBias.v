(** K1, K2, K4, K5: b_k has no effect and no gradient; where it begins to matter; how Adam moves it by rounding noise. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head.
Open Scope R_scope.

(** ** K1 *)

(** P(b_k) = P(0), for every mask, scale and query bias. *)
Theorem K1_no_effect H bq bk i : weights H bq bk i = weights H bq zero i.
Proof. apply (softmax_shared _ _ _ _ (scale H * dot (dims H) (add (query H i) bq) bk)). apply logit_key_bias. Qed.

(** A whole layer does not see its key biases: every sequence, every head, MQA and GQA. *)
Theorem K1_layer L bq bk bv bo : attention L bq bk bv bo = attention L bq (fun _ => zero) bv bo.
Proof.
  extensionality e. extensionality i. extensionality c. unfold attention, output. f_equal.
  apply sum_ext. intros. now rewrite K1_no_effect.
Qed.

(** The same with dropout factors D_ij on the weights: they multiply equal numbers. *)
Theorem K1_dropout H bq bk bv (D : mat) i :
  mixture (keys H) (fun j => D i j * weights H bq bk i j) (value H) bv
  = mixture (keys H) (fun j => D i j * weights H bq zero i j) (value H) bv.
Proof. now rewrite K1_no_effect. Qed.

(** A cache holds keys as they are multiplied with q, after rotation if the model rotates. Taking any constant c off all of
    them changes no weight. So a quantised cache may store K − c. *)
Theorem K9_cached_keys m d mu s (q c : vec) (k : mat) :
  softmax m mu (fun j => s * dot d q (fun a => k j a - c a)) = softmax m mu (fun j => s * dot d q (k j)).
Proof. apply (softmax_shared _ _ _ _ (- s * dot d q c)). intros j. rewrite dot_sub_r. ring. Qed.

(** ** K2 *)

(** Σ_j ∂L/∂z_ij = 0: a loss of the weights of one row has partial derivatives D_j in the logits, and they sum to 0. *)
Theorem K2_row_sum m mu z (loss : vec -> R) (G : vec) :
  sees m mu -> gradient 1 m (fun O => loss (O 0%nat)) (fun _ => softmax m mu z) (fun _ => G) ->
  let D := fun j => softmax m mu z j * (G j - sum m (fun l => softmax m mu z l * G l)) in
  (forall j, (j < m)%nat -> derivable_pt_lim (fun t => loss (softmax m mu (fun l => z l + t * unit j l))) 0 (D j))
  /\ sum m D = 0.
Proof.
  intros S HG D. split.
  - intros j Hj.
    assert (Z0 : (fun l => z l + 0 * unit j l) = z) by (extensionality l; ring).
    specialize (HG (fun t _ => softmax m mu (fun l => z l + t * unit j l))
      (fun _ l => softmax m mu z l * (unit j l - sum m (fun p => softmax m mu z p * unit j p)))).
    simpl in HG. replace (D j) with (0 + sum m (fun l => G l * (softmax m mu z l * (unit j l - sum m (fun p => softmax m mu z p * unit j p))))).
    + apply HG; [intros; now rewrite Z0|]. intros _ l _ Hl.
      assert (Q := softmax_derivative m mu (fun t l => z l + t * unit j l) (unit j) l S Hl). simpl in Q. rewrite Z0 in Q.
      apply Q. intros. apply derive_affine.
    + unfold D. rewrite (sum_ext m (fun p => softmax m mu z p * unit j p) (fun p => unit j p * softmax m mu z p)) by (intros; ring).
      rewrite sum_unit by easy.
      rewrite (sum_ext m _ (fun l => unit j l * (G l * softmax m mu z l) - softmax m mu z j * (softmax m mu z l * G l))) by (intros; ring).
      rewrite sum_minus, sum_unit, sum_scal by easy. ring.
  - unfold D. rewrite (sum_ext m _ (fun j => softmax m mu z j * G j - softmax m mu z j * sum m (fun l => softmax m mu z l * G l))) by (intros; ring).
    rewrite sum_minus, sum_scal_r, softmax_sum by easy. ring.
Qed.

(** ∂L/∂b_k = 0 for every loss of the layer's output, in every direction of all key biases at once. *)
Theorem K2_no_gradient L bq bk bv bo (loss : (nat -> nat -> vec) -> R) (direction : nat -> vec) :
  derivable_pt_lim (fun t => loss (attention L bq (fun g => add (bk g) (scale_by t (direction g))) bv bo)) 0 0.
Proof. apply derive_constant. intros t. now rewrite K1_layer, (K1_layer L bq (fun g => add (bk g) (scale_by 0 (direction g)))). Qed.

(** One step of Adam on one parameter: value, first and second moment; t counts from 1. *)
Definition adam (lr b1 b2 eps : R) (t : nat) (state : R * R * R) (g : R) : R * R * R :=
  let '(x, m, v) := state in
  let m' := b1 * m + (1 - b1) * g in
  let v' := b2 * v + (1 - b2) * (g * g) in
  (x - lr * (m' / (1 - b1 ^ t)) / (sqrt (v' / (1 - b2 ^ t)) + eps), m', v').

Fixpoint adam_run (lr b1 b2 eps : R) (x : R) (g : nat -> R) (t : nat) : R * R * R :=
  match t with O => (x, 0, 0) | S p => adam lr b1 b2 eps (S p) (adam_run lr b1 b2 eps x g p) (g (S p)) end.

(** Adam leaves b_k where it was: with gradient 0 at every step the value stays. *)
Theorem K2_adam_rests lr b1 b2 eps x t : adam_run lr b1 b2 eps x (fun _ => 0) t = (x, 0, 0).
Proof. induction t; [easy|]. simpl. rewrite IHt. unfold adam. f_equal; [f_equal|]; unfold Rdiv; ring. Qed.

(** ** K4 *)

(** The plane (x, y) turned by an angle. *)
Definition turn_x (angle x y : R) := cos angle * x - sin angle * y.
Definition turn_y (angle x y : R) := sin angle * x + cos angle * y.

(** A vector of p planes at a position: plane u turned by ω_u times the position. Dims that are not turned (partial
    rotary) are planes with ω = 0. *)
Definition turned_x (omega : vec) (position : R) (x y : vec) : vec := fun u => turn_x (omega u * position) (x u) (y u).
Definition turned_y (omega : vec) (position : R) (x y : vec) : vec := fun u => turn_y (omega u * position) (x u) (y u).

(** The inner product over p planes. *)
Definition plane_dot (p : nat) (x y x' y' : vec) : R := dot p x x' + dot p y y'.

(** Turning both sides leaves a relative turn by (j − i) on the right-hand side. *)
Lemma rotary_relative p omega i j x y x' y' :
  plane_dot p (turned_x omega i x y) (turned_y omega i x y) (turned_x omega j x' y') (turned_y omega j x' y')
  = plane_dot p x y (turned_x omega (j - i) x' y') (turned_y omega (j - i) x' y').
Proof.
  unfold plane_dot, dot. rewrite <- !sum_plus. apply sum_ext. intros u _.
  unfold turned_x, turned_y, turn_x, turn_y.
  replace (omega u * (j - i)) with (omega u * j - omega u * i) by ring. rewrite cos_minus, sin_minus. ring.
Qed.

(** Rotary: with b_k in the key before it is turned, the logit gains q_i·R_{j−i} b_k, and nothing else. *)
Theorem K4_rotary p omega i j qx qy kx ky bx by_ :
  plane_dot p (turned_x omega i qx qy) (turned_y omega i qx qy)
    (turned_x omega j (add kx bx) (add ky by_)) (turned_y omega j (add kx bx) (add ky by_))
  = plane_dot p (turned_x omega i qx qy) (turned_y omega i qx qy) (turned_x omega j kx ky) (turned_y omega j kx ky)
    + plane_dot p qx qy (turned_x omega (j - i) bx by_) (turned_y omega (j - i) bx by_).
Proof.
  rewrite !rotary_relative. unfold plane_dot, dot. rewrite <- !sum_plus. apply sum_ext. intros u _.
  unfold turned_x, turned_y, turn_x, turn_y, add. ring.
Qed.

(** In a plane that turns (cos θ ≠ 1) every b_k ≠ 0 matters: some q sees it differently at the distances 0 and θ/ω. *)
Theorem K4_rotary_matters theta bx by_ :
  cos theta <> 1 -> (bx <> 0 \/ by_ <> 0) ->
  exists qx qy, qx * turn_x theta bx by_ + qy * turn_y theta bx by_ <> qx * bx + qy * by_.
Proof.
  intros Hc Hb. exists (turn_x theta bx by_ - bx), (turn_y theta bx by_ - by_).
  set (X := turn_x theta bx by_). set (Y := turn_y theta bx by_).
  assert (E : (X - bx) * (X - bx) + (Y - by_) * (Y - by_) = 2 * (1 - cos theta) * (bx * bx + by_ * by_)).
  { unfold X, Y, turn_x, turn_y. assert (T := sin2_cos2 theta). unfold Rsqr in T.
    transitivity ((sin theta * sin theta + cos theta * cos theta + 1 - 2 * cos theta) * (bx * bx + by_ * by_)); [ring|].
    rewrite T. ring. }
  assert (0 < 1 - cos theta) by (destruct (COS_bound theta); lra).
  assert (0 < bx * bx + by_ * by_) by (destruct Hb; nra).
  assert (0 < (1 - cos theta) * (bx * bx + by_ * by_)) by now apply Rmult_lt_0_compat.
  intros F. nra.
Qed.

(** What own keys of total A keep beside competitors of total B, once b_k has multiplied theirs by e^c. *)
Definition share (w c : R) : R := w / (w + (1 - w) * exp (- c)).

(** Foreign keys (prefix keys, add_bias_kv, add_zero_attn) with logits x_l and values y_l, f of them, with weights ν_l ≥ 0;
    z are the own logits, c = s q_i·b_k what b_k adds to them, w the share of the own keys without b_k. Then
    O' = ρ P̂V + (1 − ρ) F with ρ = w/(w + (1 − w)e^{−c}); P̂V and F are what own and foreign keys give alone. *)
Theorem K4_foreign_keys m f mu nu z x c (v y : mat) a :
  sees m mu -> sees f nu ->
  let own := fun c => sum m (fun j => mu j * exp (z j + c)) in
  let foreign := sum f (fun l => nu l * exp (x l)) in
  let rho := share (own 0 / (own 0 + foreign)) c in
  (sum m (fun j => mu j * exp (z j + c) * v j a) + sum f (fun l => nu l * exp (x l) * y l a)) / (own c + foreign)
  = rho * sum m (fun j => softmax m mu z j * v j a) + (1 - rho) * sum f (fun l => softmax f nu x l * y l a).
Proof.
  intros Sm Sf own foreign rho.
  assert (A := total_pos m mu z Sm). assert (B := total_pos f nu x Sf).
  set (A0 := sum m (fun j => mu j * exp (z j))) in *. fold foreign in B.
  assert (own_c : forall t, own t = exp t * A0).
  { intros t. unfold own, A0. rewrite <- sum_scal. apply sum_ext. intros. rewrite exp_plus. ring. }
  assert (E := exp_pos c).
  rewrite (sum_ext m (fun j => mu j * exp (z j + c) * v j a) (fun j => exp c * A0 * (softmax m mu z j * v j a))).
  2: { intros. unfold softmax. fold A0. rewrite exp_plus. field. lra. }
  rewrite (sum_ext f (fun l => nu l * exp (x l) * y l a) (fun l => foreign * (softmax f nu x l * y l a))).
  2: { intros. unfold softmax. fold foreign. field. lra. }
  rewrite !sum_scal. set (PV := sum m _). set (F := sum f _).
  unfold rho, share. rewrite !own_c, exp_0, exp_Ropp. field. repeat split; try lra; nra.
Qed.

(** A sink of logit σ, and softmax-off-by-one, which is σ = 0: the same with F = 0. *)
Theorem K4_sink m mu z sigma c (v : mat) a :
  sees m mu ->
  let own := fun c => sum m (fun j => mu j * exp (z j + c)) in
  sum m (fun j => mu j * exp (z j + c) / (own c + exp sigma) * v j a)
  = share (own 0 / (own 0 + exp sigma)) c * sum m (fun j => softmax m mu z j * v j a).
Proof.
  intros S own.
  assert (F := K4_foreign_keys m 1 mu (fun _ => 1) z (fun _ => sigma) c v (fun _ _ => 0) a S).
  assert (S1 : sees 1 (fun _ => 1)) by (split; [intros; lra|exists 0%nat; split; [lia|lra]]).
  specialize (F S1). cbv zeta in F. simpl in F. rewrite !Rmult_0_r, !Rplus_0_r, !Rplus_0_l, !Rmult_1_l, ?Rmult_0_r, ?Rplus_0_r in F.
  fold (own c) in F. unfold share at 1. unfold own in F |- *.
  rewrite (sum_ext m _ (fun j => mu j * exp (z j + c) * v j a / (sum m (fun j => mu j * exp (z j + c)) + exp sigma)))
    by (intros; unfold Rdiv; ring).
  rewrite sum_div, F. unfold share. now rewrite !(sum_ext m (fun j => mu j * exp (z j + 0)) (fun j => mu j * exp (z j))) by (intros; now rewrite Rplus_0_r).
Qed.

(** ** K5 *)

(** Adam's moments under a constant gradient g are (1 − β₁ᵗ) g and (1 − β₂ᵗ) g². *)
Lemma adam_moments lr b1 b2 eps x g t :
  snd (fst (adam_run lr b1 b2 eps x (fun _ => g) t)) = (1 - b1 ^ t) * g
  /\ snd (adam_run lr b1 b2 eps x (fun _ => g) t) = (1 - b2 ^ t) * (g * g).
Proof.
  induction t; [simpl; lra|]. cbn [adam_run].
  destruct (adam_run lr b1 b2 eps x (fun _ => g) t) as [[y m] v]. simpl in *.
  destruct IHt as [-> ->]. split; ring.
Qed.

(** A power of a number between 0 and 1 is below 1. *)
Lemma pow_below_1 b t : 0 <= b < 1 -> b ^ S t < 1.
Proof.
  intros H. assert (b ^ t <= 1) by (induction t; simpl; [lra|]; assert (0 <= b ^ t) by (apply pow_le; lra); nra).
  assert (0 <= b ^ t) by (apply pow_le; lra). simpl. nra.
Qed.

(** Every step under a constant gradient g moves the value by lr·|g|/(|g| + eps), against g; the first step is t = 0. *)
Theorem K5_step lr b1 b2 eps x g t :
  0 <= b1 < 1 -> 0 <= b2 < 1 ->
  let at_ := fun t => fst (fst (adam_run lr b1 b2 eps x (fun _ => g) t)) in
  at_ (S t) = at_ t - lr * g / (Rabs g + eps).
Proof.
  intros H1 H2 at_. unfold at_. cbn [adam_run]. assert (M := adam_moments lr b1 b2 eps x g t).
  destruct (adam_run lr b1 b2 eps x (fun _ => g) t) as [[y m] v]. cbn [fst snd] in *. destruct M as [-> ->].
  unfold adam. cbn [fst]. assert (P1 := pow_below_1 b1 t H1). assert (P2 := pow_below_1 b2 t H2).
  replace (b1 * ((1 - b1 ^ t) * g) + (1 - b1) * g) with ((1 - b1 ^ S t) * g) by (simpl; ring).
  replace (b2 * ((1 - b2 ^ t) * (g * g)) + (1 - b2) * (g * g)) with ((1 - b2 ^ S t) * (g * g)) by (simpl; ring).
  replace ((1 - b1 ^ S t) * g / (1 - b1 ^ S t)) with g by (field; lra).
  replace ((1 - b2 ^ S t) * (g * g) / (1 - b2 ^ S t)) with (Rsqr g) by (unfold Rsqr; field; lra).
  now rewrite sqrt_Rsqr_abs.
Qed.

(** Noise far above eps moves b_k by lr: the step falls short of it by at most lr·eps/|g|. *)
Theorem K5_large_noise lr eps g :
  0 < lr -> 0 < eps -> g <> 0 -> lr - lr * eps / Rabs g <= lr * Rabs g / (Rabs g + eps) <= lr.
Proof.
  intros Hl He Hg. assert (G : 0 < Rabs g) by now apply Rabs_pos_lt. set (n := Rabs g) in *. split.
  - apply Rminus_le. replace (lr - lr * eps / n - lr * n / (n + eps)) with (- (lr * (eps * eps) / (n * (n + eps)))) by (field; lra).
    assert (0 < lr * (eps * eps) / (n * (n + eps))) by (apply Rdiv_lt_0_compat; repeat apply Rmult_lt_0_compat; lra). lra.
  - apply Rminus_le. replace (lr * n / (n + eps) - lr) with (- (lr * eps / (n + eps))) by (field; lra).
    assert (0 < lr * eps / (n + eps)) by (apply Rdiv_lt_0_compat; [apply Rmult_lt_0_compat|]; lra). lra.
Qed.

(** Noise far below eps moves it by lr·|g|/eps: the step falls short of it by at most the fraction |g|/eps of it. *)
Theorem K5_small_noise lr eps g :
  0 < lr -> 0 < eps ->
  lr * Rabs g / eps * (1 - Rabs g / eps) <= lr * Rabs g / (Rabs g + eps) <= lr * Rabs g / eps.
Proof.
  intros Hl He. assert (G : 0 <= Rabs g) by apply Rabs_pos. set (n := Rabs g) in *.
  assert (P : 0 <= lr * (n * n) / (eps * (n + eps))).
  { apply Rmult_le_pos; [repeat apply Rmult_le_pos; lra|]. apply Rlt_le, Rinv_0_lt_compat, Rmult_lt_0_compat; lra. }
  split; apply Rminus_le.
  - replace (lr * n / eps * (1 - n / eps) - lr * n / (n + eps)) with (- (lr * (n * n) / (eps * (n + eps)) * (n / eps))) by (field; lra).
    assert (0 <= n / eps) by (apply Rmult_le_pos; [easy|apply Rlt_le, Rinv_0_lt_compat; lra]).
    assert (0 <= lr * (n * n) / (eps * (n + eps)) * (n / eps)) by now apply Rmult_le_pos. lra.
  - replace (lr * n / (n + eps) - lr * n / eps) with (- (lr * (n * n) / (eps * (n + eps)))) by (field; lra). lra.
Qed.
