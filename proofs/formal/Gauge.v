(** G2, and with it G1's second half: a head's matrices can be traded against each other, so their gradients agree. A bias is a
    column of its matrix, for an input that is 1: W_q here is [W_q b_q], and so on. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums.
Open Scope R_scope.

(** What two matrices W, M, of d rows and C and C' columns, make of inputs x_i and y_j: (W x_i)·(M y_j). *)
Definition bilinear (d C C' : nat) (x y W M : mat) : mat :=
  fun i j => dot d (fun c => dot C (W c) (x i)) (fun c => dot C' (M c) (y j)).

(** Row c of a matrix with t times the vector r added. *)
Definition raised (W : mat) (c : nat) (t : R) (r : vec) : mat := fun c' a => W c' a + t * (unit c c' * r a).

(** At t = 0 it is the matrix. *)
Lemma raised_0 W c r : raised W c 0 r = W.
Proof. extensionality c'. extensionality a. unfold raised. ring. Qed.

(** Raising a row of W adds to what it makes of x. *)
Lemma raised_dot W c t r C x c' : dot C (raised W c t r c') x = dot C (W c') x + t * (unit c c' * dot C r x).
Proof. unfold dot, raised. rewrite <- !sum_scal, <- sum_plus. apply sum_ext. intros. ring. Qed.

(** And so it adds to the bilinear numbers, *)
Lemma raised_left d C C' x y W M c t r i j :
  (c < d)%nat -> bilinear d C C' x y (raised W c t r) M i j = bilinear d C C' x y W M i j + t * (dot C r (x i) * dot C' (M c) (y j)).
Proof.
  intros Hc. unfold bilinear.
  transitivity (sum d (fun c' => dot C (W c') (x i) * dot C' (M c') (y j) + t * dot C r (x i) * (unit c c' * dot C' (M c') (y j)))).
  - apply sum_ext. intros. rewrite raised_dot. ring.
  - rewrite sum_plus, sum_scal, sum_unit by easy. unfold dot. ring.
Qed.

(** from the right too. *)
Lemma raised_right d C C' x y W M c t r i j :
  (c < d)%nat -> bilinear d C C' x y W (raised M c t r) i j = bilinear d C C' x y W M i j + t * (dot C (W c) (x i) * dot C' r (y j)).
Proof.
  intros Hc. unfold bilinear. rewrite !(dot_comm d (fun c => dot C (W c) (x i))). fold (bilinear d C' C y x (raised M c t r) W j i).
  fold (bilinear d C' C y x M W j i). rewrite raised_left by easy. ring.
Qed.

(** The derivative of a function of a d×C matrix with gradient G, along row c towards r. *)
Lemma along_row d C (f : mat -> R) W G c r :
  (c < d)%nat -> gradient d C f W G -> derivable_pt_lim (fun t => f (raised W c t r)) 0 (dot C (G c) r).
Proof.
  intros Hc HG. refine (derive_is _ _ _ _ (HG (fun t => raised W c t r) (fun c' a => unit c c' * r a) _ _) _).
  - intros. now rewrite raised_0.
  - intros c' a _ _. apply derive_affine.
  - rewrite <- (sum_unit d c (fun c' => dot C (G c') r)) by easy. apply sum_ext. intros c' _. unfold dot. rewrite <- sum_scal.
    apply sum_ext. intros. ring.
Qed.

(** For every loss of the n×m numbers (W x_i)·(M y_j), with gradients G_W and G_M: G_W Wᵀ = M G_Mᵀ, entry (c, e). *)
Lemma traded n m d C C' x y W M (loss : mat -> R) (GZ GW GM : mat) c e :
  (c < d)%nat -> (e < d)%nat ->
  gradient n m loss (bilinear d C C' x y W M) GZ ->
  gradient d C (fun W' => loss (bilinear d C C' x y W' M)) W GW ->
  gradient d C' (fun M' => loss (bilinear d C C' x y W M')) M GM ->
  dot C (GW c) (W e) = dot C' (GM e) (M c).
Proof.
  intros Hc He HZ HW HM. set (speed := fun i j => dot C (W e) (x i) * dot C' (M c) (y j)).
  set (slope := sum n (fun i => sum m (fun j => GZ i j * speed i j))).
  transitivity slope; [|symmetry].
  - apply (uniqueness_limite _ 0 _ _ (along_row d C _ W GW c (W e) Hc HW)).
    apply (HZ (fun t => bilinear d C C' x y (raised W c t (W e)) M) speed); [intros; now rewrite raised_0|].
    intros i j _ _. apply (derive_ext (fun t => bilinear d C C' x y W M i j + t * speed i j)); [|apply derive_affine].
    intros t. now rewrite raised_left.
  - apply (uniqueness_limite _ 0 _ _ (along_row d C' _ M GM e (M c) He HM)).
    apply (HZ (fun t => bilinear d C C' x y W (raised M e t (M c))) speed); [intros; now rewrite raised_0|].
    intros i j _ _. apply (derive_ext (fun t => bilinear d C C' x y W M i j + t * speed i j)); [|apply derive_affine].
    intros t. now rewrite raised_right.
Qed.

(** The logits of one head before their scale and mask, which belong to the loss here: G_q W_qᵀ = W_k G_kᵀ with the biases in the
    matrices, for every differentiable loss of the logits of n queries and m keys: every mask, scale and soft-capping, sinks too. *)
Theorem G2_query_key n m d C x y Wq Wk (loss : mat -> R) (GZ Gq Gk : mat) c e :
  (c < d)%nat -> (e < d)%nat ->
  gradient n m loss (bilinear d C C x y Wq Wk) GZ ->
  gradient d C (fun W => loss (bilinear d C C x y W Wk)) Wq Gq ->
  gradient d C (fun W => loss (bilinear d C C x y Wq W)) Wk Gk ->
  sum C (fun a => Gq c a * Wq e a) = sum C (fun a => Wk c a * Gk e a).
Proof.
  intros. rewrite (sum_ext C (fun a => Wk c a * Gk e a) (fun a => Gk e a * Wk c a)) by (intros; ring).
  now apply (traded n m d C C x y Wq Wk loss GZ).
Qed.

(** A head adds to token i W_o W_v u_i, where u_i is the mixture of inputs that the weights make, with an entry 1 for b_v's column of
    W_v. So G_v W_vᵀ = W_oᵀ G_o, for every differentiable loss of what is added. Wo is indexed by dim, then channel. *)
Theorem G2_value_output n m d C u Wv Wo (loss : mat -> R) (GZ Gv Go : mat) c e :
  (c < d)%nat -> (e < d)%nat ->
  let added := bilinear d C m u unit in
  gradient n m loss (added Wv Wo) GZ ->
  gradient d C (fun W => loss (added W Wo)) Wv Gv ->
  gradient d m (fun W => loss (added Wv W)) Wo Go ->
  sum C (fun a => Gv c a * Wv e a) = sum m (fun o => Wo c o * Go e o).
Proof.
  intros Hc He added A B D. rewrite (sum_ext m (fun o => Wo c o * Go e o) (fun o => Go e o * Wo c o)) by (intros; ring).
  now apply (traded n m d C m u unit Wv Wo loss GZ).
Qed.

(** [added] is what it is called: the inner product of W_v u_i with column o of W_o. *)
Lemma added_is d C m u Wv Wo i o : (o < m)%nat -> bilinear d C m u unit Wv Wo i o = sum d (fun c => dot C (Wv c) (u i) * Wo c o).
Proof. intros Ho. apply sum_ext. intros c _. now rewrite dot_unit_r. Qed.

(** Weight decay: where L + λ/2 ‖θ‖² is stationary, each gradient is −λ times its matrix. Then W_q W_qᵀ = W_k W_kᵀ, biases included. *)
Theorem G1_query_key n m d C x y Wq Wk (loss : mat -> R) (GZ Gq Gk : mat) lambda c e :
  lambda <> 0 -> (c < d)%nat -> (e < d)%nat ->
  gradient n m loss (bilinear d C C x y Wq Wk) GZ ->
  gradient d C (fun W => loss (bilinear d C C x y W Wk)) Wq Gq ->
  gradient d C (fun W => loss (bilinear d C C x y Wq W)) Wk Gk ->
  (forall c a, (c < d)%nat -> (a < C)%nat -> Gq c a = - (lambda * Wq c a)) ->
  (forall c a, (c < d)%nat -> (a < C)%nat -> Gk c a = - (lambda * Wk c a)) ->
  dot C (Wq c) (Wq e) = dot C (Wk c) (Wk e).
Proof.
  intros Hl Hc He A B D Sq Sk. assert (E := G2_query_key n m d C x y Wq Wk loss GZ Gq Gk c e Hc He A B D).
  rewrite (sum_ext C (fun a => Gq c a * Wq e a) (fun a => - lambda * (Wq c a * Wq e a))),
    (sum_ext C (fun a => Wk c a * Gk e a) (fun a => - lambda * (Wk c a * Wk e a))), !sum_scal in E
    by (intros; rewrite ?Sq, ?Sk by easy; ring).
  apply (Rmult_eq_reg_l (- lambda)) in E; [exact E|lra].
Qed.

(** And W_v W_vᵀ = W_oᵀ W_o. *)
Theorem G1_value_output n m d C u Wv Wo (loss : mat -> R) (GZ Gv Go : mat) lambda c e :
  lambda <> 0 -> (c < d)%nat -> (e < d)%nat ->
  let added := bilinear d C m u unit in
  gradient n m loss (added Wv Wo) GZ ->
  gradient d C (fun W => loss (added W Wo)) Wv Gv ->
  gradient d m (fun W => loss (added Wv W)) Wo Go ->
  (forall c a, (c < d)%nat -> (a < C)%nat -> Gv c a = - (lambda * Wv c a)) ->
  (forall c o, (c < d)%nat -> (o < m)%nat -> Go c o = - (lambda * Wo c o)) ->
  dot C (Wv c) (Wv e) = dot m (Wo c) (Wo e).
Proof.
  intros Hl Hc He added A B D Sv So. assert (E := G2_value_output n m d C u Wv Wo loss GZ Gv Go c e Hc He A B D).
  rewrite (sum_ext C (fun a => Gv c a * Wv e a) (fun a => - lambda * (Wv c a * Wv e a))),
    (sum_ext m (fun o => Wo c o * Go e o) (fun o => - lambda * (Wo c o * Wo e o))), !sum_scal in E
    by (intros; rewrite ?Sv, ?So by easy; ring).
  apply (Rmult_eq_reg_l (- lambda)) in E; [exact E|lra].
Qed.
