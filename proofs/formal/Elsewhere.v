(** K11, K12: what b_k is beside a sink, under sigmoid weights and under linear attention. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias.
Open Scope R_scope.

Definition sigmoid (x : R) : R := / (1 + exp (- x)).

(** ** K11 *)

(** The weights of a head's keys beside a sink of logit σ. *)
Definition beside_sink (H : Head) (sigma : R) (bq bk : vec) (i : nat) : vec := fun j =>
  mask H i j * exp (logit H bq bk i j) / (sum (keys H) (fun l => mask H i l * exp (logit H bq bk i l)) + exp sigma).

(** c_i = s (q_i + b_q)·b_k, linear in the query. *)
Definition key_shift (H : Head) (bq bk : vec) (i : nat) : R := scale H * dot (dims H) (add (query H i) bq) bk.

(** Beside a sink b_k is a sink logit of the query's own: σ − c_i. *)
Theorem K11_own_sink H sigma bq bk i :
  sees (keys H) (mask H i) -> beside_sink H sigma bq bk i = beside_sink H (sigma - key_shift H bq bk i) bq zero i.
Proof.
  intros S. extensionality j. unfold beside_sink. set (c := key_shift H bq bk i).
  assert (T := total_pos _ _ (logit H bq zero i) S). set (A := sum (keys H) (fun l => mask H i l * exp (logit H bq zero i l))) in *.
  assert (E : forall l, mask H i l * exp (logit H bq bk i l) = exp c * (mask H i l * exp (logit H bq zero i l))).
  { intros l. rewrite logit_key_bias. fold (key_shift H bq bk i). fold c. rewrite exp_plus. ring. }
  rewrite (sum_ext (keys H) (fun l => mask H i l * exp (logit H bq bk i l)) (fun l => exp c * (mask H i l * exp (logit H bq zero i l)))) by auto.
  rewrite sum_scal, E. fold A. unfold Rminus. rewrite exp_plus, exp_Ropp.
  assert (C := exp_pos c). assert (G := exp_pos sigma). field. repeat split; try lra; nra.
Qed.

(** So the head is the one without sink and without b_k, times a gate: the sigmoid of ln Σ_j μ_ij exp z_ij − σ + c_i. *)
Theorem K11_gate H sigma bq bk i j :
  sees (keys H) (mask H i) ->
  beside_sink H sigma bq bk i j
  = sigmoid (ln (sum (keys H) (fun l => mask H i l * exp (logit H bq zero i l))) - sigma + key_shift H bq bk i) * weights H bq zero i j.
Proof.
  intros S. rewrite K11_own_sink by easy. unfold beside_sink, weights, softmax, sigmoid. set (c := key_shift H bq bk i).
  assert (T := total_pos _ _ (logit H bq zero i) S). set (A := sum (keys H) (fun l => mask H i l * exp (logit H bq zero i l))) in *.
  replace (- (ln A - sigma + c)) with (sigma - c + - ln A) by ring. rewrite exp_plus, (exp_Ropp (ln A)), exp_ln by easy.
  assert (G := exp_pos (sigma - c)). field. repeat split; lra.
Qed.

(** Under sigmoid attention each weight w becomes w/(w + (1 − w) e^{−c_i}). *)
Theorem K11_sigmoid H bq bk i j :
  sigmoid (logit H bq bk i j) = share (sigmoid (logit H bq zero i j)) (key_shift H bq bk i).
Proof.
  rewrite logit_key_bias. fold (key_shift H bq bk i). set (z := logit H bq zero i j). set (c := key_shift H bq bk i).
  unfold sigmoid, share. rewrite Ropp_plus_distr, exp_plus. assert (A := exp_pos (- z)). assert (B := exp_pos (- c)).
  field. repeat split; try lra; nra.
Qed.

(** ** K12 *)

(** Linear attention with identity features: z_ij over the sum of its row, no exponential. *)
Definition linear_output (H : Head) (bq bk : vec) (i a : nat) : R :=
  sum (keys H) (fun j => mask H i j * logit H bq bk i j * value H j a) / sum (keys H) (fun l => mask H i l * logit H bq bk i l).

(** b_k mixes in the mean of the values that the row sees: O_i(b_k) = (1 − λ_i) O_i(0) + λ_i v̄, λ_i = m c_i/(n_i + m c_i),
    where n_i is the sum of the row without b_k and m the number of keys in sight; neither normaliser is 0. *)
Theorem K12_mean H bq bk i a :
  sees (keys H) (mask H i) ->
  let c := key_shift H bq bk i in
  let m := sum (keys H) (mask H i) in
  let n := sum (keys H) (fun l => mask H i l * logit H bq zero i l) in
  let lambda := m * c / (n + m * c) in
  n <> 0 -> n + m * c <> 0 ->
  linear_output H bq bk i a
  = (1 - lambda) * linear_output H bq zero i a + lambda * (sum (keys H) (fun j => mask H i j * value H j a) / m).
Proof.
  intros S c m n lambda N N'.
  assert (M : m <> 0) by (assert (0 < m) by (apply sum_pos; apply S); lra).
  unfold linear_output. fold n.
  rewrite (sum_ext (keys H) (fun j => mask H i j * logit H bq bk i j * value H j a)
    (fun j => mask H i j * logit H bq zero i j * value H j a + c * (mask H i j * value H j a)))
    by (intros; rewrite logit_key_bias; fold (key_shift H bq bk i); fold c; ring).
  rewrite (sum_ext (keys H) (fun l => mask H i l * logit H bq bk i l) (fun l => mask H i l * logit H bq zero i l + c * mask H i l))
    by (intros; rewrite logit_key_bias; fold (key_shift H bq bk i); fold c; ring).
  rewrite !sum_plus, !sum_scal. fold n. fold m. unfold lambda. field. repeat split; auto.
Qed.
