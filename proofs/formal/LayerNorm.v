(** K8 and V7: what a LayerNorm hides. A direction of W_k in front of it acts as a key bias, and so does nothing; the mean of
    b_o and of W_o behind the attention is not read by the next one. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias.
Open Scope R_scope.

(** A vector of C numbers without its mean. *)
Definition centred (C : nat) (x : vec) : vec := fun a => x a - sum C x / INR C.

(** LayerNorm: centred, divided by the standard deviation (eps inside the root), times γ, plus β. *)
Definition layer_norm (C : nat) (eps : R) (gamma beta x : vec) : vec :=
  fun a => gamma a * (centred C x a / sqrt (dot C (centred C x) (centred C x) / INR C + eps)) + beta a.

(** What is centred sums to 0. *)
Lemma centred_sum C x : (0 < C)%nat -> sum C (centred C x) = 0.
Proof.
  intros HC. assert (INR C <> 0) by (apply not_0_INR; lia).
  unfold centred. rewrite sum_minus, sum_const. field. easy.
Qed.

(** ** K8 *)

(** n = 1/γ: its inner product with what LayerNorm gives is n·β, the same for every input x. *)
Theorem K8_direction C eps gamma beta x :
  (0 < C)%nat -> (forall a, (a < C)%nat -> gamma a <> 0) ->
  dot C (fun a => / gamma a) (layer_norm C eps gamma beta x) = dot C (fun a => / gamma a) beta.
Proof.
  intros HC G. unfold layer_norm. set (r := sqrt _).
  transitivity (sum C (fun a => centred C x a / r + / gamma a * beta a)).
  - apply sum_ext. intros a Ha. rewrite Rmult_plus_distr_l, <- Rmult_assoc, Rinv_l by auto. ring.
  - rewrite sum_plus, sum_div, centred_sum by easy. unfold dot, Rdiv. ring.
Qed.

(** A layer whose keys are read from y, token j of sequence e, by the key matrix W of the head's group. *)
Definition reading (L : Layer) (C : nat) (y : nat -> nat -> vec) (W : nat -> mat) : Layer := {|
  heads := heads L; group := group L; Wo := Wo L;
  head := fun e u => let H := head L e u in {|
    queries := queries H; keys := keys H; dims := dims H; query := query H; value := value H; mask := mask H; scale := scale H;
    key := fun j c => dot C (W (group L u) c) (y e j) |} |}.

(** W + t nᵀ. *)
Definition moved (W : mat) (t n : vec) : mat := fun c a => W c a + t c * n a.

(** Behind a LayerNorm W_k + t nᵀ gives the same outputs as W_k, for every t in every group, every b_q, b_k and mask. *)
Theorem K8_hidden L C eps gamma beta x W t bq bk bv bo :
  (0 < C)%nat -> (forall a, (a < C)%nat -> gamma a <> 0) ->
  let y := fun e j => layer_norm C eps gamma beta (x e j) in
  attention (reading L C y (fun g => moved (W g) (t g) (fun a => / gamma a))) bq bk bv bo
  = attention (reading L C y W) bq bk bv bo.
Proof.
  intros HC G y. set (n := fun a => / gamma a).
  transitivity (attention (reading L C y W) bq (fun g => add (bk g) (scale_by (dot C n beta) (t g))) bv bo).
  2: { now rewrite K1_layer, (K1_layer _ _ bk). }
  extensionality e. extensionality i. extensionality c. unfold attention. simpl. f_equal. apply sum_ext. intros u _.
  f_equal. unfold output, weights. simpl. extensionality a. f_equal. f_equal. extensionality j. unfold logit. simpl. f_equal.
  apply sum_ext. intros p _. f_equal. unfold add, scale_by, moved.
  transitivity (dot C (W (group L u) p) (y e j) + t (group L u) p * dot C n (y e j) + bk (group L u) p).
  - f_equal. unfold dot. rewrite <- sum_scal, <- sum_plus. apply sum_ext. intros. ring.
  - unfold y, n. rewrite K8_direction by easy. ring.
Qed.

(** (∂L/∂W_k) n = 0 for every loss of the outputs: d directions of each group's W_k get no gradient. *)
Theorem K8_no_gradient L C D eps gamma beta x W bq bk bv bo (loss : (nat -> nat -> vec) -> R) g (G : mat) c :
  (0 < C)%nat -> (forall a, (a < C)%nat -> gamma a <> 0) -> (c < D)%nat ->
  let y := fun e j => layer_norm C eps gamma beta (x e j) in
  let at_ := fun M : mat => loss (attention (reading L C y (fun g' => if Nat.eqb g' g then M else W g')) bq bk bv bo) in
  gradient D C at_ (W g) G -> dot C (G c) (fun a => / gamma a) = 0.
Proof.
  intros HC Hg Hc y at_ HG. set (n := fun a => / gamma a).
  assert (A := HG (fun t => moved (W g) (scale_by t (unit c)) n) (fun c' a => unit c c' * n a)).
  assert (B : derivable_pt_lim (fun t => at_ (moved (W g) (scale_by t (unit c)) n)) 0 (sum D (fun c' => sum C (fun a => G c' a * (unit c c' * n a))))).
  { apply A.
    - intros. unfold moved, scale_by. ring.
    - intros c' a _ _. apply (derive_ext (fun t => W g c' a + t * (unit c c' * n a))); [|apply derive_affine].
      intros. unfold moved, scale_by. ring. }
  replace (dot C (G c) n) with (sum D (fun c' => sum C (fun a => G c' a * (unit c c' * n a)))).
  - apply (uniqueness_limite (fun t => at_ (moved (W g) (scale_by t (unit c)) n)) 0); [easy|].
    apply (derive_ext (fun _ => at_ (W g))); [|apply derivable_pt_lim_const]. intros t. unfold at_. f_equal.
    rewrite <- (K8_hidden L C eps gamma beta x _ (fun g' => if Nat.eqb g' g then scale_by t (unit c) else zero)) by easy.
    f_equal. f_equal. extensionality g'. destruct (Nat.eqb g' g); [easy|].
    extensionality p. extensionality a. unfold moved, zero. ring.
  - rewrite <- (sum_unit D c (fun c' => dot C (G c') n)) by easy. apply sum_ext. intros c' _. unfold dot.
    rewrite <- sum_scal. apply sum_ext. intros. ring.
Qed.

(** ** V7 *)

(** A LayerNorm does not see the mean of what it reads. *)
Theorem V7_layer_norm C eps gamma beta x t :
  (0 < C)%nat -> layer_norm C eps gamma beta (fun a => x a + t) = layer_norm C eps gamma beta x.
Proof.
  intros HC. assert (INR C <> 0) by (apply not_0_INR; lia).
  unfold layer_norm. replace (centred C (fun a => x a + t)) with (centred C x); [easy|].
  extensionality a. unfold centred. rewrite sum_plus, sum_const. field. easy.
Qed.

(** A residual stream of tokens i. Reader l (a block, the head, or anything else) sees the stream through its own LayerNorm,
    and only so, and adds what it makes of all tokens. *)
Section Stream.
Variables (C : nat) (eps : R).
Variables gamma beta : nat -> vec.
Variable block : nat -> mat -> mat.

Definition read (l : nat) (stream : mat) : mat := fun i => layer_norm C eps (gamma l) (beta l) (stream i).

Fixpoint stream (start : mat) (l : nat) : mat :=
  match l with O => start | S p => fun i => add (stream start p i) (block p (read p (stream start p)) i) end.

(** A number t_i added to all C entries of each token is carried along, and no reader sees it: the mean is null. *)
Theorem V7_mean start t l :
  (0 < C)%nat -> read l (stream (fun i a => start i a + t i) l) = read l (stream start l).
Proof.
  intros HC.
  assert (R : forall l' s, read l' (fun i a => s i a + t i) = read l' s)
    by (intros; unfold read; extensionality i; now apply V7_layer_norm).
  assert (E : stream (fun i a => start i a + t i) l = fun i a => stream start l i a + t i).
  { induction l as [|l IH]; [easy|]. simpl. rewrite IH, R. extensionality i. extensionality a. unfold add. ring. }
  now rewrite E, R.
Qed.

(** So 1ᵀ ∂L/∂b_o = 0 for every loss of what is read: b_o enters each token of the stream behind its layer. *)
Theorem V7_output_bias start bo (loss : (nat -> mat) -> R) (G : vec) :
  (0 < C)%nat ->
  let at_ := fun b : vec => loss (fun l => read l (stream (fun i => add (start i) b) l)) in
  gradient 1 C (fun O => at_ (O 0%nat)) (fun _ => bo) (fun _ => G) -> sum C G = 0.
Proof.
  intros HC at_ HG.
  assert (B : derivable_pt_lim (fun t => at_ (fun a => bo a + t * 1)) 0 (0 + sum C (fun a => G a * 1))).
  { apply (HG (fun t _ a => bo a + t * 1) (fun _ _ => 1)); [intros; ring|]. intros. apply derive_affine. }
  transitivity (0 + sum C (fun a => G a * 1)).
  { rewrite Rplus_0_l. apply sum_ext. intros. ring. }
  apply (uniqueness_limite (fun t => at_ (fun a => bo a + t * 1)) 0); [easy|].
  apply (derive_ext (fun _ => at_ bo)); [|apply derivable_pt_lim_const]. intros t. unfold at_. f_equal. extensionality l.
  rewrite <- (V7_mean (fun i => add (start i) bo) (fun _ => t)) by easy. do 2 f_equal.
  extensionality i. extensionality a. unfold add. ring.
Qed.

(** And 1ᵀ ∂L/∂W_o = 0: o are the heads' outputs, D numbers per token, of which W_o makes C. *)
Theorem V7_output_matrix start D (o : mat) (Wo : mat) (loss : (nat -> mat) -> R) (G : mat) p :
  (0 < C)%nat -> (p < D)%nat ->
  let at_ := fun W : mat => loss (fun l => read l (stream (fun i c => start i c + dot D (W c) (o i)) l)) in
  gradient C D at_ Wo G -> sum C (fun c => G c p) = 0.
Proof.
  intros HC Hp at_ HG.
  assert (B : derivable_pt_lim (fun t => at_ (fun c a => Wo c a + t * unit p a)) 0 (sum C (fun c => sum D (fun a => G c a * unit p a)))).
  { apply (HG (fun t c a => Wo c a + t * unit p a) (fun _ a => unit p a)); [intros; ring|]. intros. apply derive_affine. }
  transitivity (sum C (fun c => sum D (fun a => G c a * unit p a))).
  { apply sum_ext. intros c _. rewrite (sum_ext D _ (fun a => unit p a * G c a)) by (intros; ring). now rewrite sum_unit. }
  apply (uniqueness_limite (fun t => at_ (fun c a => Wo c a + t * unit p a)) 0); [easy|].
  apply (derive_ext (fun _ => at_ Wo)); [|apply derivable_pt_lim_const]. intros t. unfold at_. f_equal. extensionality l.
  rewrite <- (V7_mean (fun i c => start i c + dot D (Wo c) (o i)) (fun i => t * o i p)) by easy. do 2 f_equal.
  extensionality i. extensionality c. rewrite Rplus_assoc. f_equal. unfold dot. rewrite <- (sum_unit D p (o i) Hp), <- sum_scal, <- sum_plus.
  apply sum_ext. intros. ring.
Qed.

End Stream.
