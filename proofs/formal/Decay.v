(** G1: weight decay in the loss picks one among the biases that do the same. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias Training.
Open Scope R_scope.

(** λ/2 x² for one trained entry x that has moved by t; the penalty's other terms stay while it does. *)
Definition penalty (lambda x t : R) : R := lambda / 2 * ((x + t) * (x + t)).

(** It has derivative λ x. *)
Lemma penalty_derivative lambda x : derivable_pt_lim (penalty lambda x) 0 (lambda * x).
Proof.
  assert (D := derive_affine x 1 0).
  assert (Q := derivable_pt_lim_scal _ (lambda / 2) 0 _ (derivable_pt_lim_mult _ _ 0 _ _ D D)).
  refine (derive_is _ _ _ _ (derive_ext _ _ _ _ _ Q) _).
  - intros t. unfold penalty, mult_real_fct, mult_fct. ring.
  - field.
Qed.

(** So where a loss with slope g is stationary once the penalty is added, g = −λ x. *)
Lemma stationary (f : R -> R) lambda x g :
  derivable_pt_lim f 0 g -> derivable_pt_lim (fun t => f t + penalty lambda x t) 0 0 -> g = - (lambda * x).
Proof.
  intros F S. assert (A := derivable_pt_lim_plus f (penalty lambda x) 0 _ _ F (penalty_derivative lambda x)).
  assert (E := uniqueness_limite _ _ _ _ A S). lra.
Qed.

(** At a stationary point of L + λ/2 ‖θ‖² every key bias is 0. *)
Theorem G1_key_bias L bq bk bv bo (loss : (nat -> nat -> vec) -> R) lambda g a :
  lambda <> 0 ->
  derivable_pt_lim (fun t => loss (attention L bq (nudged bk g a t) bv bo) + penalty lambda (bk g a) t) 0 0 -> bk g a = 0.
Proof.
  intros Hl S. assert (Z : derivable_pt_lim (fun t => loss (attention L bq (nudged bk g a t) bv bo)) 0 0).
  { apply derive_constant. intros t. now rewrite K1_layer, (K1_layer _ _ (nudged bk g a 0)). }
  assert (E := stationary _ _ _ _ Z S). assert (X : lambda * bk g a = 0) by lra. destruct (Rmult_integral _ _ X); easy.
Qed.

(** And b_v = W_oᵀ b_o, summed over the query heads of the group: where the point is stationary in each entry of b_o and in b_v. *)
Theorem G1_value_bias L D at_ n C bq bk bv bo (loss : mat -> R) (G : mat) lambda g a :
  wide L D -> (forall e i, visible L e i) -> (a < D)%nat -> lambda <> 0 ->
  gradient n C loss (batch at_ (attention L bq bk bv bo)) G ->
  (forall c, (c < C)%nat -> derivable_pt_lim
     (fun t => loss (batch at_ (attention L bq bk bv (add bo (scale_by t (unit c))))) + penalty lambda (bo c) t) 0 0) ->
  derivable_pt_lim (fun t => loss (batch at_ (attention L bq bk
     (fun g' => if Nat.eqb g' g then add (bv g) (scale_by t (unit a)) else bv g') bo)) + penalty lambda (bv g a) t) 0 0 ->
  bv g a = sum (heads L) (fun u => if Nat.eqb (group L u) g then sum C (fun c => Wo L u c a * bo c) else 0).
Proof.
  intros W S Ha Hl HG So Sv.
  assert (O : forall c, (c < C)%nat -> sum n (fun r => G r c) = - (lambda * bo c))
    by (intros c Hc; exact (stationary _ _ _ _ (V3_output_bias L at_ n C bq bk bv bo loss G c Hc HG) (So c Hc))).
  assert (V := stationary _ _ _ _ (V3_gradient L D at_ n C bq bk bv bo loss G g a W S Ha HG) Sv). cbv beta in V.
  rewrite (sum_ext (heads L) _ (fun u => - lambda * (if Nat.eqb (group L u) g then sum C (fun c => Wo L u c a * bo c) else 0))) in V.
  - rewrite sum_scal in V. apply (Rmult_eq_reg_l lambda); [lra|easy].
  - intros u _. destruct (Nat.eqb (group L u) g); [|ring]. rewrite <- sum_scal. apply sum_ext. intros c Hc. rewrite O by easy. ring.
Qed.
