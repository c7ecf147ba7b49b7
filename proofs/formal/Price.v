(** Q10: the price of moving attention. How long a b_q must be to move a row so far, and how long is enough. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias QueryBias.
Open Scope R_scope.

(** The inverse of tanh. *)
Definition artanh (t : R) : R := ln ((1 + t) / (1 - t)) / 2.

(** What tanh y bounds from above, y bounds by its artanh. *)
Lemma artanh_le t y : -1 < t -> t <= tanh y -> artanh t <= y.
Proof.
  intros T H. replace y with ((4 * y - 0) / 4) in H by field. rewrite tanh_quarter in H.
  replace (4 * y / 2) with (2 * y) in H by field. replace (0 / 2) with 0 in H by field. rewrite exp_0 in H.
  set (E := exp (2 * y)) in *. assert (E0 : 0 < E) by apply exp_pos.
  assert (A : t * (E + 1) <= E - 1).
  { apply (Rmult_le_compat_r (E + 1)) in H; [|lra]. unfold Rdiv in H. rewrite Rmult_assoc, Rinv_l in H; lra. }
  assert (B : t < 1) by nra. assert (0 < (1 + t) / (1 - t)) by (apply Rdiv_lt_0_compat; lra).
  assert (C : (1 + t) / (1 - t) <= E).
  { apply (Rmult_le_reg_r (1 - t)); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra. }
  unfold artanh. assert (D : ln ((1 + t) / (1 - t)) <= 2 * y); [|lra].
  rewrite <- (ln_exp (2 * y)). fold E. destruct C as [C|C]; [left; now apply ln_increasing|right; now rewrite C].
Qed.

(** A total variation is not negative. *)
Lemma tv_nonneg m p p' : 0 <= tv m p p'.
Proof. unfold tv. assert (0 <= sum m (fun j => Rabs (p' j - p j))) by (apply sum_nonneg; intros; apply Rabs_pos). lra. Qed.

(** A row that b_q moves by TV tells how long b_q is: 4 artanh(TV) ≤ s ‖b_q‖ diam(K), the diameter over the keys that the
    row sees. *)
Theorem Q10_needed H bq bk i diam :
  sees (keys H) (mask H i) -> 0 <= scale H ->
  (forall j l, (j < keys H)%nat -> (l < keys H)%nat -> 0 < mask H i j -> 0 < mask H i l ->
     norm (dims H) (fun a => key H j a - key H l a) <= diam) ->
  4 * artanh (tv (keys H) (weights H zero bk i) (weights H bq bk i)) <= scale H * norm (dims H) bq * diam.
Proof.
  intros S P D. set (far := scale H * norm (dims H) bq * diam).
  assert (O : oscillates (keys H) (mask H i) (beta H bq bk) far).
  { intros j l Hj Hl Pj Pl. unfold beta. rewrite !dot_add_l.
    replace (scale H * (dot (dims H) (key H j) bq + dot (dims H) bk bq) - scale H * (dot (dims H) (key H l) bq + dot (dims H) bk bq))
      with (scale H * dot (dims H) bq (fun a => key H j a - key H l a)) by (rewrite dot_sub_r, !(dot_comm _ bq); ring).
    unfold far. rewrite Rmult_assoc. apply Rmult_le_compat_l; [easy|].
    apply Rle_trans with (Rabs (dot (dims H) bq (fun a => key H j a - key H l a))); [apply Rle_abs|].
    eapply Rle_trans; [apply cauchy_schwarz|]. apply Rmult_le_compat_l; [apply norm_nonneg|now apply D]. }
  assert (A : artanh (tv (keys H) (weights H zero bk i) (weights H bq bk i)) <= far / 4).
  { apply artanh_le; [|now apply Q3_bound]. assert (T := tv_nonneg (keys H) (weights H zero bk i) (weights H bq bk i)). lra. }
  lra.
Qed.

(** And this long is enough to give key j* all but ε: s ‖b_q‖ gap ≥ osc(z_i) + ln((m − 1)/ε), where b_q/‖b_q‖ tells j* from
    every other key in sight by the gap, and [osc] is by how much another logit of the row, its mask included, exceeds that
    of j*. *)
Theorem Q10_enough H bq bk i p gap osc eps :
  sees (keys H) (mask H i) -> (p < keys H)%nat -> 0 < mask H i p -> (2 <= keys H)%nat -> 0 < eps ->
  (forall j, (j < keys H)%nat -> mask H i j * exp (logit H zero bk i j) <= exp osc * (mask H i p * exp (logit H zero bk i p))) ->
  (forall j, (j < keys H)%nat -> j <> p -> 0 < mask H i j -> gap * norm (dims H) bq <= dot (dims H) bq (fun a => key H p a - key H j a)) ->
  0 <= scale H -> osc + ln ((INR (keys H) - 1) / eps) <= scale H * norm (dims H) bq * gap ->
  1 - weights H bq bk i p <= eps.
Proof.
  intros S Hp Pp M He O G P Long. set (k := INR (keys H) - 1) in *. set (far := scale H * norm (dims H) bq * gap) in *.
  assert (K : 0 < k) by (assert (2 <= INR (keys H)) by (now apply (le_INR 2)); unfold k; lra).
  apply Rle_trans with (k * exp (osc - far)).
  - unfold weights. replace (logit H bq bk i) with (fun j => logit H zero bk i j + 1 * beta H bq bk j)
      by (extensionality j; rewrite (Q1_one_number_a_key H bq); ring).
    replace (osc - far) with (osc - 1 * far) by ring. apply Q6_saturation; auto; [lra|].
    intros j Hj N Pj. unfold beta. rewrite !dot_add_l.
    replace (scale H * (dot (dims H) (key H p) bq + dot (dims H) bk bq) - scale H * (dot (dims H) (key H j) bq + dot (dims H) bk bq))
      with (scale H * dot (dims H) bq (fun a => key H p a - key H j a)) by (rewrite dot_sub_r, !(dot_comm _ bq); ring).
    unfold far. replace (scale H * norm (dims H) bq * gap) with (scale H * (gap * norm (dims H) bq)) by ring.
    apply Rmult_le_compat_l; auto.
  - assert (Q : 0 < k / eps) by now apply Rdiv_lt_0_compat.
    assert (X : exp (osc - far) <= / (k / eps)).
    { rewrite <- (exp_ln (k / eps)) by easy. rewrite <- exp_Ropp.
      assert (L : osc - far <= - ln (k / eps)) by lra. destruct L as [L|L]; [left; now apply exp_increasing|right; now rewrite L]. }
    apply Rle_trans with (k * / (k / eps)); [apply Rmult_le_compat_l; lra|]. right. field. lra.
Qed.
