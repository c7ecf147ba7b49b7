(** V9: a bias on the latent from which keys and values are made (MLA). *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias.
Open Scope R_scope.

(** U x, for x of r entries. *)
Definition image (r : nat) (U : mat) (x : vec) : vec := fun a => dot r (U a) x.

(** A head whose keys and values are made of latents c_j: k_j = U_k c_j, v_j = U_v c_j. MLA's rotary part, which reads other
    keys, adds to the logits a number that no latent enters, as a mask does. *)
Definition from_latent (n m d r : nat) (q : mat) (Uk Uv : mat) (c : mat) (mu : mat) (s : R) : Head := {|
  queries := n; keys := m; dims := d; query := q;
  key := fun j => image r Uk (c j); value := fun j => image r Uv (c j); mask := mu; scale := s |}.

(** The latents, each with b_c added. *)
Definition biased (c : mat) (bc : vec) : mat := fun j => add (c j) bc.

(** b_c has no effect through the keys: it is the key bias U_k b_c. *)
Theorem V9_keys n m d r q Uk Uv c mu s bc bq bk i :
  weights (from_latent n m d r q Uk Uv (biased c bc) mu s) bq bk i = weights (from_latent n m d r q Uk Uv c mu s) bq bk i.
Proof.
  set (H := from_latent n m d r q Uk Uv c mu s).
  rewrite (K1_no_effect H), <- (K1_no_effect H bq (add bk (image r Uk bc))).
  unfold weights. simpl. f_equal. extensionality j. unfold logit. simpl. f_equal. apply sum_ext. intros a _. f_equal.
  unfold add at 1 3, image at 1 2, biased. rewrite dot_add_r. unfold add, image. ring.
Qed.

(** Through the values it is the value bias U_v b_c. *)
Theorem V9_shift n m d r q Uk Uv c mu s bc bq bk bv i a :
  sees m (mu i) ->
  output (from_latent n m d r q Uk Uv (biased c bc) mu s) bq bk bv i a
  = output (from_latent n m d r q Uk Uv c mu s) bq bk bv i a + image r Uv bc a.
Proof.
  intros S. unfold output. rewrite V9_keys. simpl. set (w := weights _ bq bk i).
  assert (W : sum m w = 1) by (apply (softmax_sum m (mu i)); exact S).
  unfold mixture. rewrite <- (Rmult_1_l (image r Uv bc a)), <- W, <- sum_scal_r, <- sum_plus. apply sum_ext. intros j _.
  unfold image at 1, biased. rewrite dot_add_r. unfold image. ring.
Qed.

(** A layer of such heads, each with its own U_k and U_v on the same latents of a sequence. *)
Definition latent_layer (h n m d r : nat) (q Uk Uv : nat -> nat -> mat) (c : nat -> mat) (mu : nat -> nat -> mat) (s : R) (W : nat -> mat) : Layer := {|
  heads := h; group := fun u => u; Wo := W;
  head := fun e u => from_latent n m d r (q e u) (Uk 0%nat u) (Uv 0%nat u) (c e) (mu e u) s |}.

(** It folds: b_o' = b_o + W_o U_v b_c and no b_c give the same output. *)
Theorem V9_fold h n m d r q Uk Uv c mu s W bc bq bk bv bo e i x :
  (forall u, (u < h)%nat -> sees m (mu e u i)) ->
  attention (latent_layer h n m d r q Uk Uv (fun e => biased (c e) bc) mu s W) bq bk bv bo e i x
  = attention (latent_layer h n m d r q Uk Uv c mu s W) bq bk bv
      (add bo (fun o => sum h (fun u => dot d (W u o) (image r (Uv 0%nat u) bc)))) e i x.
Proof.
  intros S. unfold attention, add. simpl. rewrite Rplus_assoc, <- sum_plus. f_equal. apply sum_ext. intros u Hu.
  rewrite Rplus_comm, <- dot_add_r. apply sum_ext. intros a _. f_equal. unfold add. apply V9_shift. now apply S.
Qed.
