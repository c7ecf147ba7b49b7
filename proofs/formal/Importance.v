(** I1, I2, I3: the three measures of how much a bias matters; b before, b' after fine-tuning, of d entries. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums.
Open Scope R_scope.

(** ** I1 *)

(** I = 1 − cos∠(b, b')·min(‖b‖, ‖b'‖)/max(‖b‖, ‖b'‖). *)
Definition mag_angle (d : nat) (b b' : vec) : R :=
  1 - dot d b b' / (norm d b * norm d b') * (Rmin (norm d b) (norm d b') / Rmax (norm d b) (norm d b')).

(** With M the longer of the two norms it is 1 − ⟨b, b'⟩/M². *)
Lemma mag_angle_longer d b b' :
  0 < norm d b -> 0 < norm d b' ->
  mag_angle d b b' = 1 - dot d b b' / (Rmax (norm d b) (norm d b') * Rmax (norm d b) (norm d b')).
Proof.
  intros P Q. unfold mag_angle, Rmin, Rmax. destruct (Rle_dec (norm d b) (norm d b')); field; lra.
Qed.

(** It is symmetric. *)
Theorem I1_symmetric d b b' : mag_angle d b b' = mag_angle d b' b.
Proof. unfold mag_angle. now rewrite dot_comm, Rmin_comm, Rmax_comm, (Rmult_comm (norm d b)). Qed.

(** The length of t u. *)
Lemma norm_scale d t u : 0 < t -> norm d (scale_by t u) = t * norm d u.
Proof.
  intros T. unfold norm. rewrite dot_scale_l, dot_scale_r, <- Rmult_assoc, sqrt_mult_alt by nra. rewrite sqrt_square; lra.
Qed.

(** A common scale changes nothing. *)
Theorem I1_scale d t b b' : 0 < t -> 0 < norm d b -> 0 < norm d b' -> mag_angle d (scale_by t b) (scale_by t b') = mag_angle d b b'.
Proof.
  intros T P Q. assert (0 < t * norm d b) by now apply Rmult_lt_0_compat. assert (0 < t * norm d b') by now apply Rmult_lt_0_compat.
  rewrite !mag_angle_longer; rewrite ?norm_scale by easy; auto.
  rewrite dot_scale_l, dot_scale_r, RmaxRmult by lra. assert (0 < Rmax (norm d b) (norm d b')) by (eapply Rlt_le_trans; [exact P|apply Rmax_l]).
  field. lra.
Qed.

(** Nor does a rotation, of any dimension: a map that keeps the inner products of b and b'. *)
Theorem I1_rotation d (turn : vec -> vec) b b' :
  (forall u v, dot d (turn u) (turn v) = dot d u v) -> mag_angle d (turn b) (turn b') = mag_angle d b b'.
Proof. intros E. unfold mag_angle, norm. now rewrite !E. Qed.

(** |⟨b, b'⟩| ≤ M², M the longer norm. *)
Lemma inner_below d b b' :
  0 < norm d b -> 0 < norm d b' -> let M := Rmax (norm d b) (norm d b') in
  0 < M * M /\ - (M * M) <= dot d b b' <= M * M.
Proof.
  intros P Q M. assert (norm d b <= M) by apply Rmax_l. assert (norm d b' <= M) by apply Rmax_r.
  assert (C := cauchy_schwarz d b b'). apply abs_bounds in C.
  assert (norm d b * norm d b' <= M * M) by (apply Rmult_le_compat; lra). split; [nra|lra].
Qed.

(** It is at least 0 and at most 2. *)
Theorem I1_between d b b' : 0 < norm d b -> 0 < norm d b' -> 0 <= mag_angle d b b' <= 2.
Proof.
  intros P Q. rewrite mag_angle_longer by easy. destruct (inner_below d b b' P Q) as (M & L & U). set (MM := _ * _) in *.
  assert (- 1 <= dot d b b' / MM <= 1); [|lra].
  split; apply (Rmult_le_reg_r MM); try easy; unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra; lra.
Qed.

(** It is at most 1 for angles up to 90°. *)
Theorem I1_acute d b b' : 0 < norm d b -> 0 < norm d b' -> 0 <= dot d b b' -> mag_angle d b b' <= 1.
Proof.
  intros P Q A. rewrite mag_angle_longer by easy. destruct (inner_below d b b' P Q) as (M & _).
  assert (0 <= dot d b b' / (Rmax (norm d b) (norm d b') * Rmax (norm d b) (norm d b'))); [|lra].
  apply Rmult_le_pos; [easy|now apply Rlt_le, Rinv_0_lt_compat].
Qed.

(** It is 0 iff b' = b. *)
Theorem I1_zero d b b' :
  0 < norm d b -> 0 < norm d b' -> mag_angle d b b' = 0 <-> forall a, (a < d)%nat -> b' a = b a.
Proof.
  intros P Q. rewrite mag_angle_longer by easy. destruct (inner_below d b b' P Q) as (M & _).
  set (m := Rmax (norm d b) (norm d b')) in *.
  assert (B : dot d b b <= m * m) by (rewrite <- norm_square; apply Rmult_le_compat; try apply Rmax_l; lra).
  assert (B' : dot d b' b' <= m * m) by (rewrite <- norm_square; apply Rmult_le_compat; try apply Rmax_r; lra).
  split.
  - intros E a Ha.
    assert (I : dot d b b' = m * m).
    { assert (X : dot d b b' / (m * m) = 1) by lra. apply (Rmult_eq_compat_r (m * m)) in X.
      unfold Rdiv in X. rewrite Rmult_assoc, Rinv_l in X; lra. }
    assert (Z : dot d (fun x => b' x - b x) (fun x => b' x - b x) = 0).
    { apply Rle_antisym; [|apply dot_self_nonneg].
      rewrite dot_sub_r, !(dot_comm d (fun x => b' x - b x)), !dot_sub_r, (dot_comm d b' b). lra. }
    assert (W := dot_self_zero d _ Z a Ha). simpl in W. lra.
  - intros E.
    assert (D : dot d b b' = dot d b b) by (apply sum_ext; intros; now rewrite E).
    assert (N : norm d b' = norm d b) by (unfold norm; f_equal; apply sum_ext; intros; now rewrite E).
    assert (m * m = dot d b b) as -> by (unfold m; rewrite N, Rmax_left by lra; apply norm_square).
    rewrite D. field. rewrite <- norm_square. nra.
Qed.

(** ** I2 *)

(** I = mean |b' − b|. *)
Definition magnitude (d : nat) (b b' : vec) : R := sum d (fun a => Rabs (b' a - b a)) / INR d.

(** It is a metric: not negative, symmetric, with the triangle inequality, and 0 iff b' = b. *)
Theorem I2_metric d b b' b'' :
  (0 < d)%nat ->
  0 <= magnitude d b b' /\ magnitude d b b' = magnitude d b' b
  /\ magnitude d b b'' <= magnitude d b b' + magnitude d b' b''
  /\ (magnitude d b b' = 0 <-> forall a, (a < d)%nat -> b' a = b a).
Proof.
  intros Hd. assert (D : 0 < INR d) by (apply (lt_INR 0); easy). assert (I : 0 < / INR d) by now apply Rinv_0_lt_compat.
  unfold magnitude, Rdiv. repeat split.
  - apply Rmult_le_pos; [apply sum_nonneg; intros; apply Rabs_pos|lra].
  - f_equal. apply sum_ext. intros. apply Rabs_minus_sym.
  - rewrite <- Rmult_plus_distr_r, <- sum_plus. apply Rmult_le_compat_r; [lra|]. apply sum_le. intros a _.
    replace (b'' a - b a) with ((b' a - b a) + (b'' a - b' a)) by ring. apply Rabs_triang.
  - intros E a Ha. destruct (Rmult_integral _ _ E) as [Z|Z]; [|lra].
    assert (A := sum_zero_inv d (fun a => Rabs (b' a - b a)) a (fun _ _ => Rabs_pos _) Z Ha). simpl in A.
    destruct (Req_dec (b' a - b a) 0) as [|N]; [lra|]. now apply Rabs_no_R0 in N.
  - intros E. rewrite sum_zero; [ring|]. intros. rewrite E by easy. rewrite Rminus_eq_0. apply Rabs_R0.
Qed.

(** It scales with its arguments. *)
Theorem I2_scale d t b b' : magnitude d (scale_by t b) (scale_by t b') = Rabs t * magnitude d b b'.
Proof.
  unfold magnitude, scale_by. unfold Rdiv. rewrite <- Rmult_assoc. f_equal. rewrite <- sum_scal. apply sum_ext. intros.
  rewrite <- Rabs_mult. f_equal. ring.
Qed.

(** It is not invariant to a rotation: (1, 0) turned by the angle whose cosine is 3/5 gives 7/10 for 1/2. *)
Theorem I2_not_invariant :
  exists (turn : vec -> vec) (b b' : vec), (forall u v, dot 2 (turn u) (turn v) = dot 2 u v) /\ magnitude 2 (turn b) (turn b') <> magnitude 2 b b'.
Proof.
  exists (fun u a => match a with O => 3/5 * u 0%nat - 4/5 * u 1%nat | _ => 4/5 * u 0%nat + 3/5 * u 1%nat end), zero, (unit 0). split.
  - intros. unfold dot. simpl. field.
  - unfold magnitude, unit, zero. simpl. unfold Rabs. repeat destruct (Rcase_abs _); lra.
Qed.

(** ** I3 *)

(** A gradient is clipped to joint norm at most 1 where its factor is min(1, 1/‖g‖) over all terms that are clipped together. *)
Definition clip (total : R) : R := if Rle_dec total 1 then 1 else / sqrt total.

(** What clipping leaves has squared norm at most 1; a gradient that is 0 stays. *)
Lemma clip_total total : 0 <= total -> clip total * clip total * total <= 1.
Proof.
  intros T. unfold clip. destruct (Rle_dec total 1); [lra|].
  rewrite <- Rinv_mult, sqrt_sqrt by lra. rewrite Rinv_l; lra.
Qed.

(** The factor is positive. *)
Lemma clip_pos total : 0 < clip total.
Proof. unfold clip. destruct (Rle_dec total 1); [lra|]. apply Rinv_0_lt_compat, sqrt_lt_R0. lra. Qed.

(** I = the mean over N batches i and d entries a of (clipped g_ia)². U terms u are clipped together. *)
Definition fisher (N d U : nat) (g : nat -> nat -> vec) (u : nat) : R :=
  sum N (fun i => let c := clip (sum U (fun w => dot d (g w i) (g w i))) in dot d (scale_by c (g u i)) (scale_by c (g u i))) / (INR N * INR d).

(** The sum of d·I over the terms clipped together is at most 1, for every number of batches and dimension. *)
Theorem I3_joint_bound N d U g : (0 < N)%nat -> (0 < d)%nat -> sum U (fun u => INR d * fisher N d U g u) <= 1.
Proof.
  intros HN Hd. assert (n : 0 < INR N) by (apply (lt_INR 0); easy). assert (D : 0 < INR d) by (apply (lt_INR 0); easy).
  unfold fisher. rewrite (sum_ext U _ (fun u => / INR N * sum N (fun i =>
    let c := clip (sum U (fun w => dot d (g w i) (g w i))) in dot d (scale_by c (g u i)) (scale_by c (g u i))))) by (intros; cbv zeta; field; lra).
  rewrite sum_scal, sum_swap. apply (Rmult_le_reg_l (INR N)); [easy|]. rewrite <- Rmult_assoc, Rinv_r, Rmult_1_l by lra.
  rewrite Rmult_1_r, <- (Rmult_1_r (INR N)), <- sum_const. apply sum_le. intros i _. cbv zeta. set (c := clip _).
  rewrite (sum_ext U _ (fun u => c * c * dot d (g u i) (g u i))) by (intros; rewrite dot_scale_l, dot_scale_r; ring).
  rewrite sum_scal. apply clip_total. apply sum_nonneg. intros. apply dot_self_nonneg.
Qed.

(** So I is at most 1/d, and never negative. *)
Theorem I3_bound N d U g u : (0 < N)%nat -> (0 < d)%nat -> (u < U)%nat -> 0 <= fisher N d U g u <= 1 / INR d.
Proof.
  intros HN Hd Hu. assert (n : 0 < INR N) by (apply (lt_INR 0); easy). assert (D : 0 < INR d) by (apply (lt_INR 0); easy).
  assert (P : forall w, 0 <= fisher N d U g w).
  { intros w. apply Rmult_le_pos; [apply sum_nonneg; intros; apply dot_self_nonneg|]. apply Rlt_le, Rinv_0_lt_compat, Rmult_lt_0_compat; easy. }
  split; [apply P|]. apply (Rmult_le_reg_l (INR d)); [easy|].
  replace (INR d * (1 / INR d)) with 1 by (field; lra). eapply Rle_trans; [|now apply (I3_joint_bound N d U g)].
  apply (sum_ge_term U (fun w => INR d * fisher N d U g w)); [|easy]. intros. apply Rmult_le_pos; [lra|apply P].
Qed.

(** I is 0 iff every gradient is 0. *)
Theorem I3_zero N d U g u :
  (0 < N)%nat -> (0 < d)%nat ->
  fisher N d U g u = 0 <-> forall i a, (i < N)%nat -> (a < d)%nat -> g u i a = 0.
Proof.
  intros HN Hd. assert (n : 0 < INR N) by (apply (lt_INR 0); easy). assert (D : 0 < INR d) by (apply (lt_INR 0); easy).
  assert (I : 0 < / (INR N * INR d)) by (apply Rinv_0_lt_compat, Rmult_lt_0_compat; easy). unfold fisher, Rdiv. split.
  - intros E i a Hi Ha. destruct (Rmult_integral _ _ E) as [Z|Z]; [|lra].
    assert (Q := sum_zero_inv N _ i (fun i _ => dot_self_nonneg d (scale_by (clip (sum U (fun w => dot d (g w i) (g w i)))) (g u i))) Z Hi).
    assert (W := dot_self_zero d _ Q a Ha). unfold scale_by in W. destruct (Rmult_integral _ _ W) as [C|]; [|easy].
    assert (P := clip_pos (sum U (fun w => dot d (g w i) (g w i)))). lra.
  - intros E. rewrite sum_zero; [ring|]. intros i Hi. cbv zeta. apply sum_zero. intros a Ha. unfold scale_by. rewrite E by easy. ring.
Qed.
