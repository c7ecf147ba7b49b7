(** V8: a linear read-out cannot tell b_v; b_q can turn its ranking around. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head ValueBias.
Open Scope R_scope.

(** The score of sequence e: the read-out r of the layer's outputs, pooled over its n tokens by weights π that sum to one
    (the first token alone, or the mean of those that are no padding). *)
Definition score (L : Layer) (n C : nat) (r : vec) (pool : mat) (bq bk bv : nat -> vec) (bo : vec) (e : nat) : R :=
  sum n (fun i => pool e i * dot C r (attention L bq bk bv bo e i)).

(** Every example's score moves by one number, r·W_o b_v. *)
Theorem V8_shift L D n C r pool bq bk bv bo e :
  wide L D -> (forall i, visible L e i) -> sum n (pool e) = 1 ->
  score L n C r pool bq bk bv bo e = score L n C r pool bq bk (fun _ => zero) bo e + dot C r (through L D bv).
Proof.
  intros W S P. unfold score. rewrite <- (Rmult_1_l (dot C r (through L D bv))), <- P, <- sum_scal_r, <- sum_plus.
  apply sum_ext. intros i _. rewrite <- Rmult_plus_distr_l, <- dot_add_r. f_equal. apply sum_ext. intros c _. f_equal.
  rewrite (V2_fold L D) by auto. unfold attention, add. ring.
Qed.

(** How much one example outscores another does not depend on b_v. *)
Theorem V8_ranking L D n C r pool bq bk bv bo e e' :
  wide L D -> (forall x i, visible L x i) -> (forall x, sum n (pool x) = 1) ->
  let with_bias := score L n C r pool bq bk bv bo in let without := score L n C r pool bq bk (fun _ => zero) bo in
  with_bias e - with_bias e' = without e - without e'.
Proof. intros W S P with_bias without. unfold with_bias, without. rewrite !(V8_shift L D n C r pool bq bk bv) by auto. ring. Qed.

(** One example before another: 1, after it: 0, level: 1/2. *)
Definition before (gap : R) : R := if Rlt_dec 0 gap then 1 else if Rlt_dec gap 0 then 0 else / 2.

(** The area under the ROC curve: how many pairs of a positive and a negative example are in order. *)
Definition auc (positives negatives : nat) (f g : vec) : R :=
  sum positives (fun x => sum negatives (fun y => before (f x - g y))) / (INR positives * INR negatives).

(** So the AUC does not depend on b_v; the examples are those of any two lists. *)
Theorem V8_auc L D n C r pool bq bk bv bo (positives negatives : nat) (positive negative : nat -> nat) :
  wide L D -> (forall x i, visible L x i) -> (forall x, sum n (pool x) = 1) ->
  let with_bias := score L n C r pool bq bk bv bo in let without := score L n C r pool bq bk (fun _ => zero) bo in
  auc positives negatives (fun x => with_bias (positive x)) (fun y => with_bias (negative y))
  = auc positives negatives (fun x => without (positive x)) (fun y => without (negative y)).
Proof.
  intros W S P with_bias without. unfold auc. f_equal. apply sum_ext. intros x _. apply sum_ext. intros y _. f_equal.
  apply (V8_ranking L D); auto.
Qed.

(** Keys 1 and −1, of which the first, or the second, has value 1 and the other 0; a query of −1 that b_q = 2 turns around. *)
Definition pair (first : bool) : Head := {|
  queries := 1; keys := 2; dims := 1;
  query := fun _ _ => -1; key := fun j _ => if Nat.eqb j 0 then 1 else -1;
  value := fun j _ => if Bool.eqb (Nat.eqb j 0) first then 1 else 0;
  mask := fun _ _ => 1; scale := 1 |}.

(** b_q alone reverses a ranking: without it the second example scores higher, with b_q = 2 the first. *)
Theorem V8_query_reverses :
  output (pair true) zero zero zero 0%nat 0%nat < output (pair false) zero zero zero 0%nat 0%nat
  /\ output (pair false) (fun _ => 2) zero zero 0%nat 0%nat < output (pair true) (fun _ => 2) zero zero 0%nat 0%nat.
Proof.
  assert (E : exp (-1) < exp 1) by (apply exp_increasing; lra). assert (A := exp_pos (-1)).
  assert (T : 0 < exp 1 + exp (-1)) by lra.
  unfold output, mixture, weights, softmax, logit, dot, add, zero; simpl.
  replace (1 * (0 + (-1 + 0) * (1 + 0))) with (-1) by ring. replace (1 * (0 + (-1 + 0) * (-1 + 0))) with 1 by ring.
  replace (1 * (0 + (-1 + 2) * (1 + 0))) with 1 by ring. replace (1 * (0 + (-1 + 2) * (-1 + 0))) with (-1) by ring.
  set (x := exp (-1)) in *. set (y := exp 1) in *. split; apply Rminus_lt.
  - match goal with |- ?l < 0 => replace l with (- ((y - x) / (y + x))) by (field; lra) end.
    assert (0 < (y - x) / (y + x)) by (apply Rdiv_lt_0_compat; lra). lra.
  - match goal with |- ?l < 0 => replace l with (- ((y - x) / (y + x))) by (field; lra) end.
    assert (0 < (y - x) / (y + x)) by (apply Rdiv_lt_0_compat; lra). lra.
Qed.
