(** Q11: which mean keys b_q reaches, each of them by how many attention patterns. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias QueryBias.
Open Scope R_scope.

(** Σ_j P_ij k_j. *)
Definition mean_key (H : Head) (bq bk : vec) (i : nat) : vec := fun a => sum (keys H) (fun j => weights H bq bk i j * key H j a).

(** The mean key is a convex combination of the keys in sight with all weights positive: it lies in the relative interior
    of their convex hull, whatever b_q is. *)
Theorem Q11_inside H bq bk i :
  sees (keys H) (mask H i) ->
  exists w : vec, (forall j, 0 < mask H i j -> 0 < w j) /\ (forall j, mask H i j = 0 -> w j = 0) /\ sum (keys H) w = 1
    /\ forall a, mean_key H bq bk i a = sum (keys H) (fun j => w j * key H j a).
Proof.
  intros S. exists (weights H bq bk i). split; [intros; now apply softmax_pos|]. split; [|split; [now apply softmax_sum|easy]].
  intros j E. unfold weights, softmax. rewrite E. unfold Rdiv. ring.
Qed.

(** (e^x − 1) x ≥ 0, and 0 for x = 0 alone. *)
Lemma grows_with x : 0 <= (exp x - 1) * x /\ ((exp x - 1) * x = 0 -> x = 0).
Proof.
  destruct (Rtotal_order x 0) as [L|[->|G]].
  - assert (exp x < 1) by (rewrite <- exp_0; now apply exp_increasing). split; nra.
  - rewrite exp_0. split; lra.
  - assert (1 < exp x) by (rewrite <- exp_0; now apply exp_increasing). split; nra.
Qed.

(** Each mean key belongs to one attention pattern: two b_q that give the same mean key give the same P. (By Q5 they then
    differ by a null direction.) *)
Theorem Q11_once H bq bq' bk i :
  sees (keys H) (mask H i) ->
  (forall a, (a < dims H)%nat -> mean_key H bq bk i a = mean_key H bq' bk i a) ->
  forall j, (j < keys H)%nat -> weights H bq bk i j = weights H bq' bk i j.
Proof.
  intros S E. set (m := keys H). set (P := weights H bq bk i). set (P' := weights H bq' bk i).
  set (delta := fun j => beta H bq bk j - beta H bq' bk j).
  assert (one : sum m P = 1) by now apply softmax_sum. assert (one' : sum m P' = 1) by now apply softmax_sum.
  assert (L : logit H bq bk i = fun j => logit H bq' bk i j + delta j).
  { extensionality j. unfold delta. rewrite (Q1_one_number_a_key H bq), (Q1_one_number_a_key H bq'). ring. }
  set (G := sum m (fun j => P' j * exp (delta j))).
  assert (R : forall j, P j = P' j * exp (delta j) / G).
  { intros j. unfold P, weights. rewrite L. now rewrite (softmax_reweighted (keys H) (mask H i) (logit H bq' bk i) delta j S). }
  assert (P0 : forall j, (j < m)%nat -> 0 <= P' j) by (intros; now apply softmax_nonneg).
  assert (G0 : 0 < G).
  { unfold G. apply sum_pos.
    - intros j Hj. apply Rmult_le_pos; [auto|apply Rlt_le, exp_pos].
    - destruct (proj2 S) as (p & Hp & Pp). exists p. split; [easy|]. apply Rmult_lt_0_compat; [now apply softmax_pos|apply exp_pos]. }
  set (x := fun j => delta j - ln G).
  assert (R' : forall j, P j = P' j * exp (x j)).
  { intros j. rewrite R. unfold x, Rminus. rewrite exp_plus, exp_Ropp, exp_ln by easy. unfold Rdiv. ring. }
  assert (mean_ : sum m (fun j => (P j - P' j) * delta j) = 0).
  { rewrite (sum_ext m _ (fun j => scale H * ((P j - P' j) * dot (dims H) (key H j) (fun a => bq a - bq' a)) + (P j - P' j) * (scale H * dot (dims H) bk (fun a => bq a - bq' a)))).
    - rewrite sum_plus, sum_scal, sum_scal_r, sum_minus, one, one'.
      rewrite (sum_ext m (fun j => (P j - P' j) * dot (dims H) (key H j) (fun a => bq a - bq' a))
        (fun j => sum (dims H) (fun a => (P j - P' j) * key H j a * (bq a - bq' a)))).
      + rewrite sum_swap, (sum_zero (dims H)); [ring|]. intros a Ha. rewrite sum_scal_r.
        rewrite (sum_ext m _ (fun j => P j * key H j a - P' j * key H j a)) by (intros; ring).
        rewrite sum_minus. specialize (E a Ha). unfold mean_key in E. fold m P P' in E. rewrite E. ring.
      + intros j _. unfold dot. rewrite <- sum_scal. apply sum_ext. intros. ring.
    - intros j _. unfold delta, beta. rewrite !dot_add_l, !dot_sub_r. ring. }
  assert (Z : sum m (fun j => P' j * ((exp (x j) - 1) * x j)) = 0).
  { rewrite (sum_ext m _ (fun j => (P j - P' j) * delta j - (P j - P' j) * ln G)) by (intros; rewrite R'; unfold x; ring).
    rewrite sum_minus, mean_, sum_scal_r, sum_minus, one, one'. ring. }
  intros j Hj. assert (N : forall l, (l < m)%nat -> 0 <= P' l * ((exp (x l) - 1) * x l)).
  { intros l Hl. apply Rmult_le_pos; [auto|]. apply grows_with. }
  assert (T := sum_zero_inv m _ j N Z Hj). rewrite R'. apply Rmult_integral in T. destruct T as [T|T].
  - rewrite T. ring.
  - apply grows_with in T. rewrite T, exp_0. ring.
Qed.
