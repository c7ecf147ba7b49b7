(** V4, V6, Q5's dimension and R1's LoRA: what ranks say, over any field (the reals are one), for matrices of every size. *)
From mathcomp Require Import all_ssreflect all_algebra.
Set Implicit Arguments.
Unset Strict Implicit.
Import GRing.Theory.
Local Open Scope ring_scope.

Section Ranks.

Variable F : fieldType.

(** ** V4 and V6. W_o is C×HD; E, HD×GD, repeats the G key-value heads of D dims over their H query heads (E = 1 without GQA).
    By V1 and V2 tuning b_v adds W_o E b_v to the output, the same for every token, and tuning b_o adds any vector of C numbers.
    What follows holds for every matrix E. *)
Variables C HD GD : nat.
Implicit Types (Wo : 'M[F]_(C, HD)) (E : 'M[F]_(HD, GD)).

(** A matrix reaches every vector iff its rank is the number of its rows. *)
Lemma onto_iff_rank m n (A : 'M[F]_(m, n)) : (forall y : 'cV_m, exists x : 'cV_n, A *m x = y) <-> \rank A = m.
Proof.
split=> [onto | full].
  have H : forall j, {x : 'cV[F]_n | A *m x = col j 1%:M}.
    by move=> j; apply: sig_eqW; apply: onto.
  have right_inverse : A *m (\matrix_(i, j) sval (H j) i 0) = 1%:M.
    apply/matrixP=> i j; rewrite !mxE; have /matrixP/(_ i 0) := svalP (H j).
    by rewrite !mxE => <-; apply: eq_bigr => k _; rewrite !mxE.
  by apply/eqP; rewrite eqn_leq rank_leq_row -{1}(mxrank1 F m) -right_inverse mxrankM_maxl.
move=> y; have free : row_free A by rewrite /row_free full.
by exists (pinvmx A *m y); rewrite mulmxA (mulmxVp free) mul1mx.
Qed.

(** A matrix sends different vectors to different vectors iff its rank is the number of its columns. *)
Lemma injective_iff_rank m n (A : 'M[F]_(m, n)) : (forall x y : 'cV_n, A *m x = A *m y -> x = y) <-> \rank A = n.
Proof.
split=> [inj | full].
  apply/eqP; rewrite -mxrank_tr -/(row_free A^T) -kermx_eq0; apply/eqP/row_matrixP=> i.
  rewrite row0; apply: trmx_inj; rewrite trmx0; apply: inj; rewrite mulmx0.
  by apply: trmx_inj; rewrite trmx_mul trmxK trmx0 -row_mul mulmx_ker row0.
move=> x y /(congr1 trmx); rewrite !trmx_mul => eq.
have free : row_free A^T by rewrite /row_free mxrank_tr full.
by apply: trmx_inj; apply: (row_free_inj free).
Qed.

(** Tuning b_v and tuning b_o reach the same functions iff rank(W_o E) = C: whatever b_o adds, some b_v adds too. *)
Theorem V4_same_functions Wo E : (forall b_o : 'cV_C, exists b_v : 'cV_GD, Wo *m E *m b_v = b_o) <-> \rank (Wo *m E) = C.
Proof. exact: onto_iff_rank. Qed.

(** The changes that b_v reaches are the span of W_o E's columns, of dimension rank(W_o E). *)
Theorem V6_reached Wo E (y : 'cV_C) : (exists b_v : 'cV_GD, y = Wo *m E *m b_v) <-> (y^T <= (Wo *m E)^T)%MS.
Proof.
split=> [[b ->] | /submxP [D eq]]; first by rewrite trmx_mul submxMl.
by exists D^T; apply: trmx_inj; rewrite eq [RHS]trmx_mul trmxK.
Qed.

(** Their dimension is at most C, rank W_o and G·D. *)
Theorem V6_dimension Wo E : (\rank (Wo *m E) <= minn C (minn (\rank Wo) GD))%N.
Proof. by rewrite !leq_min rank_leq_row mxrankM_maxl rank_leq_col. Qed.

(** Every rank up to C and G·D occurs, for some W_o, if E loses nothing (as a repetition does). *)
Theorem V6_attained E r : \rank E = GD -> (r <= minn C GD)%N -> exists Wo, \rank (Wo *m E) = r.
Proof.
move=> full; rewrite leq_min => /andP [rC rG].
have left_inverse : pinvmx E *m E = 1%:M by apply: mulVpmx; rewrite /row_full full.
by exists ((pid_mx r : 'M_(C, GD)) *m pinvmx E); rewrite -mulmxA left_inverse mulmx1 rank_pid_mx.
Qed.

(** b_v is identifiable from the output iff W_o E has rank G·D. *)
Theorem V6_identifiable Wo E : (forall b b' : 'cV_GD, Wo *m E *m b = Wo *m E *m b' -> b = b') <-> \rank (Wo *m E) = GD.
Proof. exact: injective_iff_rank. Qed.

(** ** Q5 *)

(** The centred keys k_j − k̄ of m keys of d dims span a space of dimension at most min(d, m − 1). *)
Theorem Q5_dimension m d (K : 'M[F]_(m, d)) :
  m%:R != 0 :> F -> let mean := m%:R^-1 *: \sum_j row j K in is_true (\rank (\matrix_j (row j K - mean)) <= minn d m.-1)%N.
Proof.
move=> m0 mean; rewrite leq_min rank_leq_col /=; set A := \matrix_j _.
case: m m0 K @mean @A => [|m] m0 K mean A; first by rewrite eqxx in m0.
rewrite -ltnS /= ltn_neqAle rank_leq_row andbT; apply/negP => /= free.
have ones : (const_mx 1 : 'rV[F]_m.+1) *m A = 0.
  rewrite mulmx_sum_row (eq_bigr (fun j => row j K - mean)); last by move=> j _; rewrite mxE scale1r rowK.
  by rewrite sumrB sumr_const card_ord /mean -scaler_nat scalerA divff // scale1r subrr.
have free_A : row_free A by [].
have := row_free_inj free_A; move/(_ 1%N (const_mx 1) 0); rewrite ones mul0mx => /(_ erefl)/matrixP/(_ 0 0).
by rewrite !mxE => /eqP; rewrite oner_eq0.
Qed.

(** ** R1 *)

(** LoRA on a bias viewed as r×c adds exactly the Δ of rank at most k: s AᵀBᵀ with A of k×r and B of c×k, k(r + c) numbers. *)
Theorem R1_lora_reach r c k (s : F) (X : 'M[F]_(r, c)) :
  s != 0 -> (exists (A : 'M_(k, r)) (B : 'M_(c, k)), X = s *: (A^T *m B^T)) <-> (\rank X <= k)%N.
Proof.
move=> s0; split=> [[A [B ->]] | small].
  by rewrite mxrank_scale_nz // (leq_trans (mxrankM_maxl _ _)) // rank_leq_col.
exists (col_ebase X *m (pid_mx (\rank X) : 'M_(r, k)))^T, (s^-1 *: ((pid_mx (\rank X) : 'M_(k, c)) *m row_ebase X))^T.
rewrite !trmxK -scalemxAr scalerA divff // scale1r mulmxA -(mulmxA _ (pid_mx _) (pid_mx _)) pid_mx_id //.
by rewrite mulmx_ebase.
Qed.

(** It starts from Δ = 0, where B = 0. *)
Theorem R1_lora_start r c k (s : F) (A : 'M[F]_(k, r)) : s *: (A^T *m (0 : 'M_(c, k))^T) = 0.
Proof. by rewrite trmx0 mulmx0 scaler0. Qed.

End Ranks.
