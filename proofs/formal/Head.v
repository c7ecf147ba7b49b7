(** One head of softmax attention, a layer of such heads, and what masks and common shifts do to a softmax.

    Everything holds for every number of keys, queries, dims, heads, groups and sequences. A mask entry M_ij enters as
    μ_ij = exp M_ij ≥ 0, so that a hidden key (M = −∞) has μ = 0; ALiBi and T5's bias are masks too. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums.
Open Scope R_scope.

(** The weights of one row: μ_j exp z_j over their sum. *)
Definition softmax (m : nat) (mu z : vec) : vec := fun j => mu j * exp (z j) / sum m (fun l => mu l * exp (z l)).

(** A row with mask weights μ sees at least one key, and no μ is negative. *)
Definition sees (m : nat) (mu : vec) : Prop := (forall j, (j < m)%nat -> 0 <= mu j) /\ exists j, (j < m)%nat /\ 0 < mu j.

(** One head on one sequence: queries, keys and values before their biases, mask weights and scale. *)
Record Head := {
  queries : nat; keys : nat; dims : nat;
  query : mat; key : mat; value : mat;
  mask : mat;
  scale : R }.

Definition logit (H : Head) (bq bk : vec) (i j : nat) : R :=
  scale H * dot (dims H) (add (query H i) bq) (add (key H j) bk).

Definition weights (H : Head) (bq bk : vec) (i : nat) : vec := softmax (keys H) (mask H i) (logit H bq bk i).

(** The mixture that a row of weights makes of the values, each with b_v added. *)
Definition mixture (m : nat) (w : vec) (v : mat) (bv : vec) : vec := fun c => sum m (fun j => w j * (v j c + bv c)).

Definition output (H : Head) (bq bk bv : vec) (i : nat) : vec := mixture (keys H) (weights H bq bk i) (value H) bv.

(** A layer: h query heads on each sequence e; query head u reads the key and value biases of its group (GQA; MQA is one
    group, ordinary attention has group u = u). Channel c reads the heads' outputs by Wo u c and adds b_o. *)
Record Layer := {
  heads : nat; group : nat -> nat;
  head : nat -> nat -> Head;
  Wo : nat -> mat }.

Definition attention (L : Layer) (bq bk bv : nat -> vec) (bo : vec) (e i c : nat) : R :=
  bo c + sum (heads L) (fun u =>
    dot (dims (head L e u)) (Wo L u c) (output (head L e u) (bq u) (bk (group L u)) (bv (group L u)) i)).

(** The softmax's denominator is positive in a row that sees a key. *)
Lemma total_pos m mu z : sees m mu -> 0 < sum m (fun l => mu l * exp (z l)).
Proof.
  intros [H (p & Hp & P)]. apply sum_pos.
  - intros. apply Rmult_le_pos; auto. apply Rlt_le, exp_pos.
  - exists p. split; auto. apply Rmult_lt_0_compat; auto. apply exp_pos.
Qed.

(** Its weights are not negative, *)
Lemma softmax_nonneg m mu z j : sees m mu -> (j < m)%nat -> 0 <= softmax m mu z j.
Proof.
  intros S Hj. apply Rmult_le_pos; [apply Rmult_le_pos; [now apply S|apply Rlt_le, exp_pos]|].
  apply Rlt_le, Rinv_0_lt_compat. now apply total_pos.
Qed.

(** positive where the key is seen, *)
Lemma softmax_pos m mu z j : sees m mu -> 0 < mu j -> 0 < softmax m mu z j.
Proof.
  intros S Hj. apply Rmult_lt_0_compat; [apply Rmult_lt_0_compat; auto; apply exp_pos|].
  apply Rinv_0_lt_compat. now apply total_pos.
Qed.

(** and sum to one. *)
Lemma softmax_sum m mu z : sees m mu -> sum m (softmax m mu z) = 1.
Proof. intros S. unfold softmax. rewrite sum_div. apply Rinv_r. assert (H := total_pos m mu z S). lra. Qed.

(** Only the logits of the m keys count. *)
Lemma softmax_ext m mu z z' j : (forall l, (l < m)%nat -> z l = z' l) -> z j = z' j -> softmax m mu z j = softmax m mu z' j.
Proof. intros E Ej. unfold softmax. rewrite Ej. f_equal. apply sum_ext. intros. now rewrite E. Qed.

(** A softmax ignores what its row shares. (In a row that sees nothing both sides are 0/0, which Coq reads as 0.) *)
Lemma softmax_shift m mu z c : softmax m mu (fun j => z j + c) = softmax m mu z.
Proof.
  extensionality j. unfold softmax, Rdiv.
  rewrite (sum_ext m _ (fun l => exp c * (mu l * exp (z l)))) by (intros; rewrite exp_plus; ring).
  rewrite sum_scal, Rinv_mult, exp_plus.
  assert (N := exp_pos c). rewrite <- (Rmult_1_r (mu j * exp (z j) */ _)), <- (Rinv_r (exp c)) by lra. ring.
Qed.

(** Two rows of logits that differ by a constant have the same softmax. *)
Lemma softmax_shared m mu z z' c : (forall j, z' j = z j + c) -> softmax m mu z' = softmax m mu z.
Proof. intros E. replace z' with (fun j => z j + c) by (extensionality j; auto). apply softmax_shift. Qed.

(** The softmax's derivative along a curve of logits: P_j (ż_j − Σ_l P_l ż_l). *)
Lemma softmax_derivative m mu (z : R -> vec) (dz : vec) j :
  sees m mu -> (j < m)%nat -> (forall l, (l < m)%nat -> derivable_pt_lim (fun t => z t l) 0 (dz l)) ->
  derivable_pt_lim (fun t => softmax m mu (z t) j) 0
    (softmax m mu (z 0) j * (dz j - sum m (fun l => softmax m mu (z 0) l * dz l))).
Proof.
  intros S Hj D. set (T := fun t => sum m (fun l => mu l * exp (z t l))).
  assert (term : forall l, (l < m)%nat -> derivable_pt_lim (fun t => mu l * exp (z t l)) 0 (mu l * (exp (z 0 l) * dz l))).
  { intros l Hl. apply (derivable_pt_lim_scal (fun t => exp (z t l))).
    apply (derivable_pt_lim_comp (fun t => z t l) exp); [auto|apply derivable_pt_lim_exp]. }
  assert (HT : T 0 <> 0) by (unfold T; assert (P := total_pos m mu (z 0) S); lra).
  assert (dT : derivable_pt_lim T 0 (sum m (fun l => mu l * (exp (z 0 l) * dz l))))
    by (apply (derive_sum m (fun l t => mu l * exp (z t l))); auto).
  assert (Q := derivable_pt_lim_div (fun t => mu j * exp (z t j)) T 0 _ _ (term j Hj) dT HT).
  refine (derive_is _ _ _ _ Q _).
  unfold softmax. rewrite (sum_ext m (fun l => mu l * exp (z 0 l) / _ * dz l)
    (fun l => mu l * (exp (z 0 l) * dz l) / T 0)) by (intros; unfold T; field; exact HT).
  rewrite sum_div. fold (T 0). unfold Rsqr. field. exact HT.
Qed.

(** b_k adds s (q_i + b_q)·b_k to every logit of row i. *)
Lemma logit_key_bias H bq bk i j :
  logit H bq bk i j = logit H bq zero i j + scale H * dot (dims H) (add (query H i) bq) bk.
Proof. unfold logit. rewrite !dot_add_r, dot_zero_r. ring. Qed.

(** b_q adds s b_q·(k_j + b_k) to the logit of key j. *)
Lemma logit_query_bias H bq bk i j :
  logit H bq bk i j = logit H zero bk i j + scale H * dot (dims H) (add (key H j) bk) bq.
Proof. unfold logit. rewrite !(dot_add_l (dims H) (query H i)), dot_zero_l, (dot_comm _ bq). ring. Qed.
