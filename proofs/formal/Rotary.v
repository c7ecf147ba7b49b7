(** K10: under rotary positions b_k is a learned position bias, and one that moves attention little in the planes that turn slowly. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias QueryBias.
Open Scope R_scope.

(** What b_k adds to a logit at the distance x = j − i, q_i·R_x b_k, is a sum of one wave a plane; and every amplitude and phase
    (every α_u cos + β_u sin) is that of some b_k, if q has no plane of length 0. *)
Theorem K10_waves p omega qx qy :
  (forall bx by_, exists alpha beta : vec, forall x,
     plane_dot p qx qy (turned_x omega x bx by_) (turned_y omega x bx by_)
     = sum p (fun u => alpha u * cos (omega u * x) + beta u * sin (omega u * x)))
  /\ ((forall u, (u < p)%nat -> 0 < qx u * qx u + qy u * qy u) ->
      forall alpha beta : vec, exists bx by_, forall x,
        plane_dot p qx qy (turned_x omega x bx by_) (turned_y omega x bx by_)
        = sum p (fun u => alpha u * cos (omega u * x) + beta u * sin (omega u * x))).
Proof.
  split.
  - intros bx by_. exists (fun u => qx u * bx u + qy u * by_ u), (fun u => qy u * bx u - qx u * by_ u). intros x.
    unfold plane_dot, dot. rewrite <- sum_plus. apply sum_ext. intros. unfold turned_x, turned_y, turn_x, turn_y. ring.
  - intros Q alpha beta. set (n := fun u => qx u * qx u + qy u * qy u).
    exists (fun u => (qx u * alpha u + qy u * beta u) / n u), (fun u => (qy u * alpha u - qx u * beta u) / n u). intros x.
    unfold plane_dot, dot. rewrite <- sum_plus. apply sum_ext. intros u Hu. unfold turned_x, turned_y, turn_x, turn_y, n.
    field. specialize (Q u Hu). lra.
Qed.

(** |sin x| ≤ |x|, squared. *)
Lemma sin_below x : sin x * sin x <= x * x.
Proof.
  assert (A : forall y, 0 < y -> sin y * sin y <= y * y).
  { intros y Hy. destruct (Rle_dec 1 y) as [L|G].
    - assert (B := SIN_bound y). nra.
    - assert (0 < sin y) by (apply sin_gt_0; [easy|]; assert (P := PI2_1); lra). assert (sin y < y) by now apply sin_lt_x. nra. }
  destruct (Rtotal_order x 0) as [N|[->|P]]; [|rewrite sin_0; lra|auto].
  specialize (A (- x)). rewrite sin_neg in A. assert (0 < - x) by lra. specialize (A H). nra.
Qed.

(** Two turns of b in a plane lie at most min(2, the angle between them) times ‖b‖ apart. *)
Lemma turns_apart qx qy bx by_ theta phi angle :
  Rabs (theta - phi) <= angle ->
  Rabs (qx * (turn_x theta bx by_ - turn_x phi bx by_) + qy * (turn_y theta bx by_ - turn_y phi bx by_))
  <= sqrt (qx * qx + qy * qy) * sqrt (bx * bx + by_ * by_) * Rmin 2 angle.
Proof.
  intros Ha. set (X := turn_x theta bx by_ - turn_x phi bx by_). set (Y := turn_y theta bx by_ - turn_y phi bx by_).
  set (q := qx * qx + qy * qy). set (b := bx * bx + by_ * by_). set (m := Rmin 2 angle).
  assert (q0 : 0 <= q) by (unfold q; nra). assert (b0 : 0 <= b) by (unfold b; nra).
  assert (a0 : 0 <= angle) by (eapply Rle_trans; [apply Rabs_pos|exact Ha]).
  assert (m0 : 0 <= m) by (unfold m; apply Rmin_glb; lra).
  assert (E : X * X + Y * Y = (2 - 2 * cos (theta - phi)) * b).
  { unfold X, Y, b, turn_x, turn_y. rewrite cos_minus. assert (T := sin2_cos2 theta). assert (F := sin2_cos2 phi). unfold Rsqr in T, F.
    transitivity ((sin theta * sin theta + cos theta * cos theta + (sin phi * sin phi + cos phi * cos phi)
                   - 2 * (cos theta * cos phi + sin theta * sin phi)) * (bx * bx + by_ * by_)); [ring|]. rewrite T, F. ring. }
  assert (M : 2 - 2 * cos (theta - phi) <= m * m).
  { unfold m, Rmin. destruct (Rle_dec 2 angle).
    - assert (B := COS_bound (theta - phi)). lra.
    - assert (S := sin_below ((theta - phi) / 2)). assert (D := cos_2a_sin ((theta - phi) / 2)).
      replace (2 * ((theta - phi) / 2)) with (theta - phi) in D by field. rewrite D.
      assert (Q : (theta - phi) * (theta - phi) <= angle * angle) by (apply abs_bounds in Ha; nra). lra. }
  assert (P : 0 <= sqrt q * sqrt b * m) by (repeat apply Rmult_le_pos; auto; apply sqrt_pos).
  rewrite <- (Rabs_pos_eq _ P). apply Rsqr_le_abs_0. unfold Rsqr.
  replace (sqrt q * sqrt b * m * (sqrt q * sqrt b * m)) with (sqrt q * sqrt q * (sqrt b * sqrt b) * (m * m)) by ring.
  rewrite !sqrt_sqrt by easy.
  apply Rle_trans with (q * (X * X + Y * Y)).
  - assert (0 <= (qx * Y - qy * X) * (qx * Y - qy * X)) by apply Rle_0_sqr. unfold q. lra.
  - rewrite E, Rmult_assoc, (Rmult_comm _ b). apply Rmult_le_compat_l; [easy|]. apply Rmult_le_compat_l; easy.
Qed.

(** The weights of a row under rotary positions: query at position i, key j at position pos j. *)
Definition rotary_weights (m p : nat) (omega mu : vec) (s i : R) (pos : vec) (qx qy : vec) (kx ky : mat) : vec :=
  softmax m mu (fun j => s * plane_dot p (turned_x omega i qx qy) (turned_y omega i qx qy)
                               (turned_x omega (pos j) (kx j) (ky j)) (turned_y omega (pos j) (kx j) (ky j))).

(** TV(P(0), P(b_k)) ≤ tanh(¼ s Σ_u ‖q^u‖ ‖b_k^u‖ min(2, ω_u W)), where the keys in sight lie within a distance W. A plane that
    hardly turns over the keys in sight, ω_u W ≈ 0, adds next to nothing: K1 is the limit. *)
Theorem K10_bound m p omega mu s i pos qx qy kx ky bx by_ W :
  sees m mu -> (forall j l, (j < m)%nat -> (l < m)%nat -> 0 < mu j -> 0 < mu l -> Rabs (pos j - pos l) <= W) ->
  tv m (rotary_weights m p omega mu s i pos qx qy kx ky)
       (rotary_weights m p omega mu s i pos qx qy (fun j => add (kx j) bx) (fun j => add (ky j) by_))
  <= tanh (Rabs s * sum p (fun u => sqrt (qx u * qx u + qy u * qy u) * sqrt (bx u * bx u + by_ u * by_ u) * Rmin 2 (Rabs (omega u) * W)) / 4).
Proof.
  intros S D. set (c := fun j => s * plane_dot p qx qy (turned_x omega (pos j - i) bx by_) (turned_y omega (pos j - i) bx by_)).
  set (z := fun j => s * plane_dot p (turned_x omega i qx qy) (turned_y omega i qx qy)
                               (turned_x omega (pos j) (kx j) (ky j)) (turned_y omega (pos j) (kx j) (ky j))).
  unfold rotary_weights. fold z.
  replace (fun j => s * plane_dot p _ _ (turned_x omega (pos j) (add (kx j) bx) _) _) with (fun j => z j + c j)
    by (extensionality j; rewrite K4_rotary; unfold z, c; ring).
  apply Q3_any_logits; [easy|]. intros j l Hj Hl Pj Pl. unfold c.
  rewrite <- Rmult_minus_distr_l. eapply Rle_trans; [apply Rle_abs|]. rewrite Rabs_mult. apply Rmult_le_compat_l; [apply Rabs_pos|].
  unfold plane_dot, dot. rewrite <- !sum_plus, <- sum_minus. eapply Rle_trans; [apply sum_abs|]. apply sum_le. intros u _.
  unfold turned_x, turned_y.
  assert (T := turns_apart (qx u) (qy u) (bx u) (by_ u) (omega u * (pos j - i)) (omega u * (pos l - i)) (Rabs (omega u) * W)).
  eapply Rle_trans; [|apply T].
  - right. f_equal. ring.
  - replace (omega u * (pos j - i) - omega u * (pos l - i)) with (omega u * (pos j - pos l)) by ring.
    rewrite Rabs_mult. apply Rmult_le_compat_l; [apply Rabs_pos|auto].
Qed.
