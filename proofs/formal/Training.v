(** K3: training b_k together with anything else is training the rest without it. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias.
Open Scope R_scope.

Section Training.

(** The optimiser: what it does to one parameter may depend on the step, the parameter's value and state, its gradient and the
    joint norm of all gradients (clipping). This covers SGD, momentum, Adam, AdamW. An optimiser that mixes parameters in
    another way is not covered: K3 is false for one that divides by the RMS of all trained entries. *)
Variable State : Type.
Variable update : nat -> R -> State -> R -> R -> R * State.

(** The model: N trained parameters θ (a head, and whatever else: projections, b_q, b_v, …) determine the layer, its other
    biases, and a loss of the layer's output. The loss may differ from step to step: data order and dropout masks are part
    of step t, the same in both runs. Key biases: Gk groups of d numbers. *)
Variables N Gk d : nat.
Variable layer : nat -> vec -> Layer.
Variables bq bv : vec -> nat -> vec.
Variable bo : vec -> vec.
Variable loss : nat -> vec -> (nat -> nat -> vec) -> R.

Definition objective (t : nat) (theta : vec) (bk : nat -> vec) : R :=
  loss t theta (attention (layer t theta) (bq theta) bk (bv theta) (bo theta)).

(** Key bias bk with e added to entry a of group g. *)
Definition nudged (bk : nat -> vec) (g a : nat) (e : R) : nat -> vec :=
  fun g' => if Nat.eqb g' g then add (bk g') (scale_by e (unit a)) else bk g'.

(** g are the partial derivatives in θ at step t, h those in b_k. *)
Definition gradients (t : nat) (theta : vec) (bk : nat -> vec) (g : vec) (h : mat) : Prop :=
  (forall p, (p < N)%nat -> derivable_pt_lim (fun e => objective t (add theta (scale_by e (unit p))) bk) 0 (g p))
  /\ forall k a, (k < Gk)%nat -> (a < d)%nat -> derivable_pt_lim (fun e => objective t theta (nudged bk k a e)) 0 (h k a).

(** The joint norm of the gradients of what is trained. *)
Definition joint (g : vec) (h : mat) : R := sqrt (sum N (fun p => g p * g p) + sum Gk (fun k => sum d (fun a => h k a * h k a))).

(** A run of {b_k, θ}: values and states of both at every step. *)
Definition run_with (theta : nat -> vec) (s : nat -> nat -> State) (bk : nat -> nat -> vec) (sk : nat -> nat -> nat -> State) : Prop :=
  forall t, exists g h, gradients t (theta t) (bk t) g h
    /\ (forall p, (p < N)%nat -> (theta (S t) p, s (S t) p) = update t (theta t p) (s t p) (g p) (joint g h))
    /\ (forall p, (N <= p)%nat -> theta (S t) p = theta t p)
    /\ forall k a, (k < Gk)%nat -> (a < d)%nat -> (bk (S t) k a, sk (S t) k a) = update t (bk t k a) (sk t k a) (h k a) (joint g h).

(** A run of {θ} alone, beside a key bias that stays at bk. *)
Definition run_without (theta : nat -> vec) (s : nat -> nat -> State) (bk : nat -> vec) : Prop :=
  forall t, exists g, (forall p, (p < N)%nat -> derivable_pt_lim (fun e => objective t (add (theta t) (scale_by e (unit p))) bk) 0 (g p))
    /\ (forall p, (p < N)%nat -> (theta (S t) p, s (S t) p) = update t (theta t p) (s t p) (g p) (joint g (fun _ _ => 0)))
    /\ (forall p, (N <= p)%nat -> theta (S t) p = theta t p).

(** The objective does not see the key bias (K1), *)
Lemma objective_blind t theta bk bk' : objective t theta bk = objective t theta bk'.
Proof. unfold objective. now rewrite K1_layer, (K1_layer _ _ bk'). Qed.

(** so the key bias adds nothing to the joint norm. *)
Lemma joint_blind t theta bk g h : gradients t theta bk g h -> joint g h = joint g (fun _ _ => 0).
Proof.
  intros [_ Hh]. unfold joint. f_equal. f_equal. apply sum_ext. intros k Hk. apply sum_ext. intros a Ha.
  replace (h k a) with 0; [easy|]. apply (uniqueness_limite (fun e => objective t theta (nudged bk k a e)) 0); [|auto].
  apply derive_constant. intros. apply objective_blind.
Qed.

(** Both runs start from the same θ and state; then they agree on θ and its state at every step, wherever b_k starts and goes. *)
Theorem K3_same_trajectory theta s bk sk theta' s' bk' :
  run_with theta s bk sk -> run_without theta' s' bk' ->
  theta 0%nat = theta' 0%nat -> (forall p, (p < N)%nat -> s 0%nat p = s' 0%nat p) ->
  forall t, theta t = theta' t /\ forall p, (p < N)%nat -> s t p = s' t p.
Proof.
  intros A B E0 S0 t. induction t as [|t [E IH]]; [easy|].
  destruct (A t) as (g & h & [Gg Gh] & U & Rest & _). destruct (B t) as (g' & Gg' & U' & Rest').
  assert (Same : forall p, (p < N)%nat -> g p = g' p).
  { intros p Hp. apply (uniqueness_limite (fun e => objective t (add (theta t) (scale_by e (unit p))) (bk t)) 0); [now apply Gg|].
    apply (derive_ext (fun e => objective t (add (theta' t) (scale_by e (unit p))) bk')); [|now apply Gg'].
    intros e. rewrite E. apply objective_blind. }
  assert (J : joint g h = joint g' (fun _ _ => 0)).
  { rewrite (joint_blind t (theta t) (bk t)) by now split. unfold joint. f_equal. f_equal. apply sum_ext. intros p Hp. now rewrite Same. }
  assert (Step : forall p, (p < N)%nat -> (theta (S t) p, s (S t) p) = (theta' (S t) p, s' (S t) p))
    by (intros p Hp; now rewrite U, U', J, Same, E, IH by easy).
  split.
  - extensionality p. destruct (le_lt_dec N p) as [L|L]; [now rewrite Rest, Rest', E by easy|].
    specialize (Step p L). congruence.
  - intros p Hp. specialize (Step p Hp). congruence.
Qed.

(** Hence the outputs agree at every step, and with them every metric of them. *)
Theorem K3_same_outputs theta s bk sk theta' s' bk' t :
  run_with theta s bk sk -> run_without theta' s' bk' ->
  theta 0%nat = theta' 0%nat -> (forall p, (p < N)%nat -> s 0%nat p = s' 0%nat p) ->
  attention (layer t (theta t)) (bq (theta t)) (bk t) (bv (theta t)) (bo (theta t))
  = attention (layer t (theta' t)) (bq (theta' t)) bk' (bv (theta' t)) (bo (theta' t)).
Proof.
  intros A B E S0. destruct (K3_same_trajectory theta s bk sk theta' s' bk' A B E S0 t) as [-> _].
  now rewrite K1_layer, (K1_layer _ _ bk').
Qed.

End Training.

(** Without a head nothing moves: where b_k alone is trained, whatever the optimiser does to it, the outputs stay. *)
Theorem K3_alone L bq bv bo (bk : nat -> nat -> vec) t : attention L bq (bk t) bv bo = attention L bq (bk 0%nat) bv bo.
Proof. now rewrite K1_layer, (K1_layer _ _ (bk 0%nat)). Qed.
