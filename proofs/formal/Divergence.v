(** Q9: how far b_q moves P in relative entropy. *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias QueryBias.
Open Scope R_scope.

(** KL(P‖P') = Σ P_j ln(P_j/P'_j). *)
Definition kl (m : nat) (p p' : vec) : R := sum m (fun j => p j * ln (p j / p' j)).

(** 1 + y ≤ e^y. *)
Lemma exp_above y : 1 + y <= exp y.
Proof. destruct (Req_dec y 0) as [->|N]; [rewrite exp_0; lra|apply Rlt_le, exp_ineq1; easy]. Qed.

(** The exponential lies below its chord. *)
Lemma exp_chord t h : 0 <= t <= 1 -> exp (t * h) <= 1 - t + t * exp h.
Proof.
  intros T. set (u := exp (t * h)). assert (U : 0 < u) by apply exp_pos.
  assert (A : u * (1 + (1 - t) * h) <= exp h).
  { replace h with (t * h + (1 - t) * h) at 2 by ring. rewrite exp_plus. apply Rmult_le_compat_l; [now apply Rlt_le|apply exp_above]. }
  assert (B : u * (1 - t * h) <= 1).
  { replace 1 with (u * exp (- (t * h))) at 2 by (unfold u; rewrite <- exp_plus; replace (t * h + - (t * h)) with 0 by ring; apply exp_0).
    apply Rmult_le_compat_l; [now apply Rlt_le|]. replace (1 - t * h) with (1 + - (t * h)) by ring. apply exp_above. }
  apply (Rmult_le_compat_l t) in A; [|lra]. apply (Rmult_le_compat_l (1 - t)) in B; [|lra]. lra.
Qed.

(** 1 − p + p e > 0. *)
Lemma between_pos p e : 0 <= p <= 1 -> 0 < e -> 0 < 1 - p + p * e.
Proof.
  intros P E. destruct (Req_dec p 1) as [->|N]; [lra|]. assert (0 <= p * e) by (apply Rmult_le_pos; lra). lra.
Qed.

(** Hoeffding's lemma for two points: ln(1 − p + p e^h) ≤ p h + h²/8. *)
Lemma two_points p h : 0 <= p <= 1 -> 0 < h -> ln (1 - p + p * exp h) <= p * h + h * h / 8.
Proof.
  intros P Hh. set (W := fun x => 1 - p + p * exp x). set (w := fun x => p * exp x / W x).
  assert (W0 : forall x, 0 < W x) by (intros x; apply between_pos; [easy|apply exp_pos]).
  assert (dE : forall x, derivable_pt_lim (fun y => p * exp y) x (p * exp x)).
  { intros x. apply (derivable_pt_lim_scal exp), derivable_pt_lim_exp. }
  assert (dW : forall x, derivable_pt_lim W x (p * exp x)).
  { intros x. unfold W. refine (derive_is _ _ _ _ (derivable_pt_lim_plus (fun _ => 1 - p) (fun y => p * exp y) x 0 _ _ (dE x)) _).
    - apply derivable_pt_lim_const.
    - ring. }
  assert (dw : forall x, derivable_pt_lim w x (w x * (1 - w x))).
  { intros x. assert (N : W x <> 0) by (assert (Q := W0 x); lra).
    refine (derive_is _ _ _ _ (derivable_pt_lim_div (fun y => p * exp y) W x _ _ (dE x) (dW x) N) _).
    unfold w, Rsqr. field. easy. }
  set (f' := fun x => p + x / 4 - w x). set (f := fun x => p * x + x * x / 8 - ln (W x)).
  assert (df : forall x, derivable_pt_lim f x (f' x)).
  { intros x. unfold f, f'. apply (derivable_pt_lim_minus (fun y => p * y + y * y / 8) (fun y => ln (W y))).
    - apply (derivable_pt_lim_plus (fun y => p * y) (fun y => y * y / 8)).
      + refine (derive_is _ _ _ _ (derivable_pt_lim_scal id p x 1 (derivable_pt_lim_id x)) _). ring.
      + apply (derive_ext (fun y => / 8 * (id y * id y))); [intros; unfold id; field|].
        refine (derive_is _ _ _ _ (derivable_pt_lim_scal (fun y => id y * id y) (/ 8) x _
          (derivable_pt_lim_mult id id x 1 1 (derivable_pt_lim_id x) (derivable_pt_lim_id x))) _). unfold id. field.
    - refine (derive_is _ _ _ _ (derivable_pt_lim_comp W ln x _ _ (dW x) (derivable_pt_lim_ln (W x) (W0 x))) _).
      unfold w. field. assert (Q := W0 x). lra. }
  assert (df' : forall x, derivable_pt_lim f' x (/ 4 - w x * (1 - w x))).
  { intros x. apply (derivable_pt_lim_minus (fun y => p + y / 4) w); [|apply dw]. apply (derive_ext (fun y => p + (y - x) * / 4 + x / 4)); [intros; field|].
    intros e He. exists (mkposreal 1 Rlt_0_1). intros d Hd _.
    replace ((p + (x + d - x) * / 4 + x / 4 - (p + (x - x) * / 4 + x / 4)) / d - / 4) with 0 by (field; easy). now rewrite Rabs_R0. }
  assert (Z : f 0 = 0) by (unfold f, W; rewrite exp_0; replace (1 - p + p * 1) with 1 by ring; rewrite ln_1; field).
  assert (Z' : f' 0 = 0) by (unfold f', w, W; rewrite exp_0; field; lra).
  assert (grows : forall x, 0 < x -> 0 <= f' x).
  { intros x Hx. destruct (MVT_cor2 f' (fun c => / 4 - w c * (1 - w c)) 0 x Hx (fun c _ => df' c)) as (c & E & _).
    assert (0 <= (w c - / 2) * (w c - / 2)) by apply Rle_0_sqr. rewrite Z' in E.
    assert (0 <= / 4 - w c * (1 - w c)) by lra. assert (0 <= (/ 4 - w c * (1 - w c)) * (x - 0)) by (apply Rmult_le_pos; lra). lra. }
  destruct (MVT_cor2 f f' 0 h Hh (fun c _ => df c)) as (c & E & C). rewrite Z in E.
  assert (0 <= f' c * (h - 0)) by (apply Rmult_le_pos; [apply grows; lra|lra]).
  assert (0 <= f h) by lra. unfold f in *. fold (W h). lra.
Qed.

(** KL(P(z)‖P(z + β)) ≤ osc(β)²/8, for every row of logits, every mask and every β. *)
Lemma divergence m mu z beta osc :
  sees m mu -> 0 < osc -> oscillates m mu beta osc -> kl m (softmax m mu z) (softmax m mu (fun j => z j + beta j)) <= osc * osc / 8.
Proof.
  intros S H O. set (P := softmax m mu z). destruct (least_seen m mu beta (proj2 S)) as (q & Hq & Pq & L). set (lo := beta q) in *.
  assert (H1 : sum m P = 1) by now apply softmax_sum.
  assert (P0 : forall j, (j < m)%nat -> 0 <= P j) by (intros; now apply softmax_nonneg).
  set (t := fun j => (beta j - lo) / osc).
  assert (T : forall j, (j < m)%nat -> P j = 0 \/ (0 < P j /\ 0 <= t j <= 1)).
  { intros j Hj. destruct (proj1 S j Hj) as [Pj|Zj].
    - right. split; [now apply softmax_pos|]. assert (A := L j Hj Pj). assert (B := O j q Hj Hq Pj Pq). fold lo in B. unfold t. split.
      + apply Rmult_le_pos; [lra|]. apply Rlt_le, Rinv_0_lt_compat; easy.
      + apply (Rmult_le_reg_r osc); [easy|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra.
    - left. unfold P, softmax. rewrite <- Zj. unfold Rdiv. ring. }
  set (G := sum m (fun j => P j * exp (beta j))). set (p := sum m (fun j => P j * t j)).
  assert (Pr : 0 <= p <= 1).
  { unfold p. split; [apply sum_nonneg|rewrite <- H1; apply sum_le]; intros j Hj; destruct (T j Hj) as [->|[A B]]; try lra; nra. }
  assert (G0 : 0 < G).
  { unfold G. apply sum_pos.
    - intros j Hj. apply Rmult_le_pos; [auto|]. apply Rlt_le, exp_pos.
    - exists q. split; [easy|]. apply Rmult_lt_0_compat; [now apply softmax_pos|apply exp_pos]. }
  assert (GB : G <= exp lo * (1 - p + p * exp osc)).
  { apply Rle_trans with (sum m (fun j => exp lo * (P j * 1 - P j * t j + P j * t j * exp osc))).
    - apply sum_le. intros j Hj. destruct (T j Hj) as [->|[A B]]; [lra|].
      replace (beta j) with (lo + t j * osc) by (unfold t; field; lra). rewrite exp_plus.
      assert (C := exp_chord (t j) osc B). assert (E := exp_pos lo).
      replace (P j * (exp lo * exp (t j * osc))) with (exp lo * (P j * exp (t j * osc))) by ring.
      apply Rmult_le_compat_l; [lra|]. apply (Rmult_le_compat_l (P j)) in C; [|lra]. lra.
    - rewrite sum_scal, sum_plus, sum_minus, !sum_scal_r, H1. fold p. lra. }
  assert (mean_ : sum m (fun j => P j * beta j) = lo + p * osc).
  { unfold p. rewrite (sum_ext m _ (fun j => P j * lo + P j * t j * osc)) by (intros; unfold t; field; lra).
    rewrite sum_plus, !sum_scal_r, H1. ring. }
  assert (K : kl m P (softmax m mu (fun j => z j + beta j)) = ln G - sum m (fun j => P j * beta j)).
  { unfold kl. replace (ln G) with (sum m (fun j => P j * ln G)) by (rewrite sum_scal_r, H1; ring). rewrite <- sum_minus.
    apply sum_ext. intros j Hj. destruct (T j Hj) as [->|[A B]]; [ring|].
    rewrite softmax_reweighted by easy. fold P. fold G. assert (E := exp_pos (beta j)).
    replace (P j / (P j * exp (beta j) / G)) with (G * / exp (beta j)) by (field; lra).
    rewrite ln_mult, ln_Rinv, ln_exp; try easy; [ring|now apply Rinv_0_lt_compat]. }
  assert (E := exp_pos lo). assert (E' := exp_pos osc).
  assert (W0 : 0 < 1 - p + p * exp osc) by now apply between_pos.
  assert (LG : ln G <= lo + (p * osc + osc * osc / 8)).
  { apply Rle_trans with (ln (exp lo * (1 - p + p * exp osc))).
    - destruct GB as [B|B]; [left; now apply ln_increasing|right; now rewrite B].
    - rewrite ln_mult, ln_exp by easy. assert (Q := two_points p osc Pr H). lra. }
  rewrite K, mean_. lra.
Qed.

(** Both relative entropies are at most osc(β)²/8, also where osc(β) = 0. *)
Theorem Q9_any_logits m mu z beta osc :
  sees m mu -> 0 <= osc -> oscillates m mu beta osc ->
  let P := softmax m mu z in let P' := softmax m mu (fun j => z j + beta j) in
  kl m P P' <= osc * osc / 8 /\ kl m P' P <= osc * osc / 8.
Proof.
  assert (All : forall z beta, sees m mu -> 0 <= osc -> oscillates m mu beta osc ->
     kl m (softmax m mu z) (softmax m mu (fun j => z j + beta j)) <= osc * osc / 8).
  { clear z beta. intros z beta S [P|Z] O; [now apply divergence|]. subst osc. set (K := kl _ _ _).
    destruct (Rle_dec K (0 * 0 / 8)) as [|N]; [easy|exfalso]. set (e := Rmin 1 K).
    assert (0 < e) by (apply Rmin_pos; lra). assert (e <= 1) by apply Rmin_l. assert (e <= K) by apply Rmin_r.
    assert (K <= e * e / 8); [|nra]. apply divergence; auto. intros j l Hj Hl Pj Pl. specialize (O j l Hj Hl Pj Pl). lra. }
  intros S H O P P'. split; [now apply All|].
  assert (B := All (fun j => z j + beta j) (fun j => - beta j) S H). cbv beta in B. unfold P, P'.
  replace (fun j => z j + beta j + - beta j) with z in B by (extensionality j; ring). apply B.
  intros j l Hj Hl Pj Pl. specialize (O l j Hl Hj Pl Pj). lra.
Qed.

(** In a head: what b_q does to row i, osc over the keys that the row sees. *)
Theorem Q9_divergence H bq bk i osc :
  sees (keys H) (mask H i) -> 0 <= osc -> oscillates (keys H) (mask H i) (beta H bq bk) osc ->
  kl (keys H) (weights H zero bk i) (weights H bq bk i) <= osc * osc / 8
  /\ kl (keys H) (weights H bq bk i) (weights H zero bk i) <= osc * osc / 8.
Proof.
  intros S P O. unfold weights. replace (logit H bq bk i) with (fun j => logit H zero bk i j + beta H bq bk j).
  - now apply Q9_any_logits.
  - extensionality j. symmetry. apply Q1_one_number_a_key.
Qed.
