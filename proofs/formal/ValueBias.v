(** V1, V2, V3, V5 and V4's reach: b_v is a shift, folds into b_o, has a gradient that needs no attention, and where that ends.
    (What ranks say, V4's second half and V6, is in Ranks.v.) *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head.
Open Scope R_scope.

(** b_v enters a mixture as itself times the sum of the weights, whatever the weights are. *)
Lemma mixture_shift m w v bv c : mixture m w v bv c = mixture m w v zero c + sum m w * bv c.
Proof.
  unfold mixture, zero. rewrite <- sum_scal_r, <- sum_plus. apply sum_ext. intros. ring.
Qed.

(** ** V1 *)

(** O(b_v) = O(0) + 1 b_vᵀ for all weights that sum to one: softmax or not, rotary, QK-norm, soft-capping, a sink whose
    value carries b_v too. *)
Theorem V1_weights_that_sum_to_one m w v bv c : sum m w = 1 -> mixture m w v bv c = mixture m w v zero c + bv c.
Proof. intros E. rewrite mixture_shift, E. ring. Qed.

(** In a head: every row that sees a key is shifted by b_v, whatever it attends to. *)
Theorem V1_shift H bq bk bv i c :
  sees (keys H) (mask H i) -> output H bq bk bv i c = output H bq bk zero i c + bv c.
Proof. intros S. apply V1_weights_that_sum_to_one. now apply softmax_sum. Qed.

(** ** V2 *)

(** In each head of the layer, token i of sequence e sees a key. *)
Definition visible (L : Layer) (e i : nat) : Prop :=
  forall u, (u < heads L)%nat -> sees (keys (head L e u)) (mask (head L e u) i).

(** All heads have D dims. *)
Definition wide (L : Layer) (D : nat) : Prop := forall e u, dims (head L e u) = D.

(** W_o b_v, with b_v repeated over its group. *)
Definition through (L : Layer) (D : nat) (bv : nat -> vec) : vec :=
  fun c => sum (heads L) (fun u => dot D (Wo L u c) (bv (group L u))).

(** b_o' = b_o + W_o b_v and no b_v give the same output; GQA included. *)
Theorem V2_fold L D bq bk bv bo e i c :
  wide L D -> visible L e i ->
  attention L bq bk bv bo e i c = attention L bq bk (fun _ => zero) (add bo (through L D bv)) e i c.
Proof.
  intros W S. unfold attention, add, through. rewrite Rplus_assoc, <- sum_plus. f_equal.
  apply sum_ext. intros u Hu. rewrite (W e u), Rplus_comm, <- dot_add_r. apply sum_ext. intros a _.
  rewrite V1_shift by now apply S. easy.
Qed.

(** ** V3 *)

(** The n tokens of a batch in any order: the r-th is token (snd (at_ r)) of sequence (fst (at_ r)). *)
Definition batch (at_ : nat -> nat * nat) (f : nat -> nat -> vec) : mat := fun r => f (fst (at_ r)) (snd (at_ r)).

(** ∂L/∂b_v = Σ_i ∂L/∂O_i, for every differentiable loss of the outputs of one head. *)
Theorem V3_sum H n bq bk bv (loss : mat -> R) (G : mat) a :
  (forall i, sees (keys H) (mask H i)) -> (a < dims H)%nat ->
  gradient n (dims H) loss (output H bq bk bv) G ->
  derivable_pt_lim (fun t => loss (output H bq bk (add bv (scale_by t (unit a))))) 0 (sum n (fun i => G i a)).
Proof.
  intros S Ha HG.
  specialize (HG (fun t => output H bq bk (add bv (scale_by t (unit a)))) (fun _ => unit a)).
  refine (derive_is _ _ _ _ (HG _ _) _).
  - intros. replace (add bv (scale_by 0 (unit a))) with bv; [easy|].
    extensionality x. unfold add, scale_by. ring.
  - intros i c _ _. apply (derive_ext (fun t => output H bq bk bv i c + t * unit a c)); [|apply derive_affine].
    intros t. rewrite (V1_shift H bq bk bv), (V1_shift H bq bk (add _ _)) by apply S. unfold add, scale_by. ring.
  - apply sum_ext. intros i _. rewrite (sum_ext (dims H) _ (fun c => unit a c * G i c)) by (intros; ring). now apply sum_unit.
Qed.

(** ∂L/∂b_o = Σ_r ∂L/∂Y_r over the tokens of the batch. *)
Theorem V3_output_bias L at_ n C bq bk bv bo (loss : mat -> R) (G : mat) c :
  (c < C)%nat -> gradient n C loss (batch at_ (attention L bq bk bv bo)) G ->
  derivable_pt_lim (fun t => loss (batch at_ (attention L bq bk bv (add bo (scale_by t (unit c)))))) 0 (sum n (fun r => G r c)).
Proof.
  intros Hc HG.
  specialize (HG (fun t => batch at_ (attention L bq bk bv (add bo (scale_by t (unit c))))) (fun _ => unit c)).
  refine (derive_is _ _ _ _ (HG _ _) _).
  - intros. replace (add bo (scale_by 0 (unit c))) with bo; [easy|]. extensionality x. unfold add, scale_by. ring.
  - intros r x _ _. apply (derive_ext (fun t => batch at_ (attention L bq bk bv bo) r x + t * unit c x)); [|apply derive_affine].
    intros t. unfold batch, attention, add, scale_by. ring.
  - apply sum_ext. intros r _. rewrite (sum_ext C _ (fun x => unit c x * G r x)) by (intros; ring). now apply sum_unit.
Qed.

(** ∂L/∂b_v = W_oᵀ ∂L/∂b_o, summed over the query heads of the group (GQA): no backward pass through the attention. *)
Theorem V3_gradient L D at_ n C bq bk bv bo (loss : mat -> R) (G : mat) g a :
  wide L D -> (forall e i, visible L e i) -> (a < D)%nat ->
  gradient n C loss (batch at_ (attention L bq bk bv bo)) G ->
  let bias_o := fun c => sum n (fun r => G r c) in
  derivable_pt_lim
    (fun t => loss (batch at_ (attention L bq bk (fun g' => if Nat.eqb g' g then add (bv g) (scale_by t (unit a)) else bv g') bo))) 0
    (sum (heads L) (fun u => if Nat.eqb (group L u) g then sum C (fun c => Wo L u c a * bias_o c) else 0)).
Proof.
  intros W S Ha HG bias_o.
  set (moved := fun t g' => if Nat.eqb g' g then add (bv g) (scale_by t (unit a)) else bv g').
  set (rate := fun (c : nat) => sum (heads L) (fun u => if Nat.eqb (group L u) g then Wo L u c a else 0)).
  specialize (HG (fun t => batch at_ (attention L bq bk (moved t) bo)) (fun _ => rate)).
  refine (derive_is _ _ _ _ (HG _ _) _).
  - intros. replace (moved 0) with bv; [easy|]. extensionality g'. unfold moved.
    destruct (Nat.eqb_spec g' g) as [->|]; [|easy]. extensionality x. unfold add, scale_by. ring.
  - intros r c _ _. apply (derive_ext (fun t => batch at_ (attention L bq bk bv bo) r c + t * rate c)); [|apply derive_affine].
    intros t. unfold batch. rewrite (V2_fold L D bq bk (moved t)), (V2_fold L D bq bk bv) by auto.
    unfold attention, add.
    assert (E : through L D (moved t) c = through L D bv c + t * rate c).
    { unfold through, rate. rewrite <- sum_scal, <- sum_plus. apply sum_ext. intros u _. unfold moved.
      destruct (Nat.eqb_spec (group L u) g) as [->|]; [|ring].
      rewrite dot_add_r, dot_scale_r, dot_unit_r by easy. ring. }
    rewrite E. ring.
  - rewrite sum_swap. rewrite (sum_ext C _ (fun c => bias_o c * rate c)) by (intros; now rewrite sum_scal_r).
    unfold rate. rewrite (sum_ext C _ (fun c => sum (heads L) (fun u => bias_o c * (if Nat.eqb (group L u) g then Wo L u c a else 0))))
      by (intros; now rewrite sum_scal).
    rewrite sum_swap. apply sum_ext. intros u _. destruct (Nat.eqb (group L u) g).
    + apply sum_ext. intros. ring.
    + apply sum_zero. intros. ring.
Qed.

(** ** V4, first half *)

(** O reaches exactly O(0) + 1·ℝᵈ: each b_v gives one such shift, and each shift t comes from b_v = t. *)
Theorem V4_reach H bq bk (shift : vec) :
  (forall i, sees (keys H) (mask H i)) ->
  (forall bv, exists t : vec, forall i c, output H bq bk bv i c = output H bq bk zero i c + t c)
  /\ exists bv, forall i c, output H bq bk bv i c = output H bq bk zero i c + shift c.
Proof. intros S. split; [intros bv; exists bv|exists shift]; intros; now apply V1_shift. Qed.

(** ** V5 *)

(** A sink without a value: b_v comes in times 1 − (the sink's weight). *)
Theorem V5_sink m mu z sigma v bv c :
  sees m mu ->
  let total := sum m (fun l => mu l * exp (z l)) + exp sigma in
  let w := fun j => mu j * exp (z j) / total in
  mixture m w v bv c = mixture m w v zero c + (1 - exp sigma / total) * bv c.
Proof.
  intros S total w. rewrite mixture_shift. f_equal. f_equal. unfold w. rewrite sum_div.
  assert (T := total_pos m mu z S). assert (E := exp_pos sigma). unfold total. field. lra.
Qed.

(** λ-difference attention: b_v comes in times 1 − λ. *)
Theorem V5_difference m mu z z' lambda v bv c :
  sees m mu ->
  let w := fun j => softmax m mu z j - lambda * softmax m mu z' j in
  mixture m w v bv c = mixture m w v zero c + (1 - lambda) * bv c.
Proof.
  intros S w. rewrite mixture_shift. f_equal. f_equal. unfold w. rewrite sum_minus, sum_scal, !softmax_sum by easy. ring.
Qed.

(** A row whose weights are all 0 (blind, as where an implementation fills a fully hidden row with 0) gets no b_v. *)
Theorem V5_blind m w v bv c : (forall j, (j < m)%nat -> w j = 0) -> mixture m w v bv c = 0.
Proof. intros E. apply sum_zero. intros. rewrite E by easy. ring. Qed.

(** Dropout: factors D_j, drawn from N outcomes ω of probability π_ω, with mean 1 each. Then the row gets r b_v, r = Σ_j P_j D_j,
    and the mean of r is 1. *)
Theorem V5_dropout m mu z N (prob : vec) (D : mat) v bv c :
  sees m mu -> (forall j, (j < m)%nat -> sum N (fun o => prob o * D o j) = 1) ->
  let r := fun o => sum m (fun j => softmax m mu z j * D o j) in
  (forall o, mixture m (fun j => softmax m mu z j * D o j) v bv c
             = mixture m (fun j => softmax m mu z j * D o j) v zero c + r o * bv c)
  /\ sum N (fun o => prob o * r o) = 1.
Proof.
  intros S E r. split; [intros o; apply mixture_shift|].
  unfold r. rewrite (sum_ext N _ (fun o => sum m (fun j => softmax m mu z j * (prob o * D o j)))).
  - rewrite sum_swap, <- (softmax_sum m mu z S). apply sum_ext. intros j Hj. rewrite sum_scal, E by easy. ring.
  - intros o _. rewrite <- sum_scal. apply sum_ext. intros. ring.
Qed.
