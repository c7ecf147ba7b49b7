(** Q1 to Q7, and Q3's share in K4: b_q adds one number to each key. How far that moves attention, and what it cannot do.
    (The dimension in Q5 is in Ranks.v.) *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias.
Open Scope R_scope.

(** β_j = s b_q·(k_j + b_k), the number that b_q adds to the logit of key j. *)
Definition beta (H : Head) (bq bk : vec) (j : nat) : R := scale H * dot (dims H) (add (key H j) bk) bq.

(** ** Q1 *)

(** z_ij(b_q) = z_ij(0) + β_j, the same β_j for every query i. *)
Theorem Q1_one_number_a_key H bq bk i j : logit H bq bk i j = logit H zero bk i j + beta H bq bk j.
Proof. apply logit_query_bias. Qed.

(** In a softmax without sink or foreign keys only the part s b_q·k_j without b_k (that is b_q·W_k y_j) moves P. *)
Theorem Q1_part_that_moves H bq bk i :
  weights H bq bk i = softmax (keys H) (mask H i) (fun j => logit H zero bk i j + scale H * dot (dims H) (key H j) bq).
Proof.
  symmetry. apply (softmax_shared _ _ _ _ (- (scale H * dot (dims H) bk bq))). intros j.
  rewrite (Q1_one_number_a_key H bq). unfold beta. rewrite dot_add_l. ring.
Qed.

(** ** Q2 *)

(** Every output is a mean of the values with weights ≥ 0 that sum to one, whatever the logits are: every b_q, rotary,
    QK-norm and soft-capping. *)
Theorem Q2_convex m mu z v bv :
  sees m mu ->
  exists w : vec, (forall j, (j < m)%nat -> 0 <= w j) /\ (forall j, mu j = 0 -> w j = 0) /\ sum m w = 1
    /\ forall c, mixture m (softmax m mu z) v bv c = sum m (fun j => w j * (v j c + bv c)).
Proof.
  intros S. exists (softmax m mu z). split; [intros; now apply softmax_nonneg|]. split; [|split; [now apply softmax_sum|easy]].
  intros j E. unfold softmax. rewrite E. unfold Rdiv. ring.
Qed.

(** So it lies on the same side of every hyperplane as all the values that the row sees. *)
Theorem Q2_half_spaces H bq bk bv i (u : vec) bound :
  sees (keys H) (mask H i) ->
  (forall j, (j < keys H)%nat -> 0 < mask H i j -> dot (dims H) u (add (value H j) bv) <= bound) ->
  dot (dims H) u (output H bq bk bv i) <= bound.
Proof.
  intros S B. unfold output, mixture.
  rewrite (dot_sum_r _ _ _ (fun j c => weights H bq bk i j * (value H j c + bv c))).
  rewrite <- (Rmult_1_l bound), <- (softmax_sum _ _ (logit H bq bk i) S), <- sum_scal_r.
  apply sum_le. intros j Hj. change (fun c => weights H bq bk i j * (value H j c + bv c)) with (scale_by (weights H bq bk i j) (add (value H j) bv)).
  rewrite dot_scale_r. destruct (proj1 S j Hj) as [P|Z].
  - apply Rmult_le_compat_l; [now apply softmax_nonneg|]. now apply B.
  - unfold weights, softmax. rewrite <- Z. unfold Rdiv. lra.
Qed.

(** ** Q3 *)

(** Total variation: half the sum of the absolute differences. *)
Definition tv (m : nat) (p p' : vec) : R := sum m (fun j => Rabs (p' j - p j)) / 2.

(** [osc] bounds the differences of β over the keys that a row sees. *)
Definition oscillates (m : nat) (mu beta : vec) (osc : R) : Prop :=
  forall j l, (j < m)%nat -> (l < m)%nat -> 0 < mu j -> 0 < mu l -> beta j - beta l <= osc.

(** Of the keys in sight one has the least β. *)
Lemma least_seen m mu beta :
  (exists j, (j < m)%nat /\ 0 < mu j) -> exists p, (p < m)%nat /\ 0 < mu p /\ forall j, (j < m)%nat -> 0 < mu j -> beta p <= beta j.
Proof.
  induction m; intros (j & Hj & Pj); [lia|].
  destruct (Rlt_dec 0 (mu m)) as [Pm|Nm].
  - assert (C : (exists l, (l < m)%nat /\ 0 < mu l) \/ forall l, (l < m)%nat -> ~ 0 < mu l).
    { clear. induction m; [right; lia|]. destruct (Rlt_dec 0 (mu m)); [left; exists m; split; [lia|easy]|].
      destruct IHm as [(l & A & B)|N]; [left; exists l; split; [lia|easy]|right].
      intros l Hl. destruct (Nat.eq_dec l m) as [->|]; [easy|apply N; lia]. }
    destruct C as [Ex|None].
    + destruct (IHm Ex) as (p & Hp & Pp & L). destruct (Rle_dec (beta p) (beta m)) as [Le|Gt].
      * exists p. split; [lia|]. split; [easy|]. intros l Hl Pl. destruct (Nat.eq_dec l m) as [->|]; [easy|apply L; auto; lia].
      * exists m. split; [lia|]. split; [easy|]. intros l Hl Pl.
        destruct (Nat.eq_dec l m) as [->|]; [lra|]. assert (beta p <= beta l) by (apply L; auto; lia). lra.
    + exists m. split; [lia|]. split; [easy|]. intros l Hl Pl. destruct (Nat.eq_dec l m) as [->|]; [lra|]. exfalso. apply (None l); auto; lia.
  - destruct IHm as (p & Hp & Pp & L).
    + exists j. split; [|easy]. destruct (Nat.eq_dec j m) as [->|]; [easy|lia].
    + exists p. split; [lia|]. split; [easy|]. intros l Hl Pl. destruct (Nat.eq_dec l m) as [->|]; [easy|apply L; auto; lia].
Qed.

(** The chord inequality: for g and G between lo and hi. *)
Lemma chord lo hi g G : lo <= g <= hi -> lo <= G <= hi -> Rabs (g - G) * (hi - lo) <= (hi - g) * (G - lo) + (g - lo) * (hi - G).
Proof. intros. unfold Rabs. destruct (Rcase_abs (g - G)); nra. Qed.

(** Weights P, reweighted by factors g between a² and b², move by at most (b − a)/(b + a). *)
Lemma reweighted m (P g : vec) a b :
  0 < a < b -> (forall j, (j < m)%nat -> 0 <= P j) -> sum m P = 1 ->
  (forall j, (j < m)%nat -> P j = 0 \/ a * a <= g j <= b * b) ->
  let G := sum m (fun j => P j * g j) in
  sum m (fun j => Rabs (P j * g j / G - P j)) / 2 <= (b - a) / (b + a).
Proof.
  intros Hab HP H1 Hg G.
  assert (HG : a * a <= G <= b * b).
  { split; [rewrite <- (Rmult_1_l (a * a))|rewrite <- (Rmult_1_l (b * b))]; rewrite <- H1, <- sum_scal_r; apply sum_le; intros j Hj;
      specialize (HP j Hj); destruct (Hg j Hj) as [->|[? ?]]; try lra; apply Rmult_le_compat_l; lra. }
  assert (aa : 0 < a * a) by nra. assert (Gpos : 0 < G) by lra.
  set (S := sum m (fun j => P j * Rabs (g j - G))).
  assert (E : sum m (fun j => Rabs (P j * g j / G - P j)) = S / G).
  { unfold S. rewrite <- sum_div. apply sum_ext. intros j Hj.
    replace (P j * g j / G - P j) with (P j / G * (g j - G)) by (field; lra).
    rewrite Rabs_mult, (Rabs_pos_eq (P j / G)); [field; lra|].
    apply Rmult_le_pos; [auto|]. apply Rlt_le, Rinv_0_lt_compat; lra. }
  assert (C : S * (b * b - a * a) <= 2 * (b * b - G) * (G - a * a)).
  { unfold S. rewrite <- sum_scal_r.
    apply Rle_trans with (sum m (fun j => (b * b * (G - a * a) - a * a * (b * b - G)) * P j + (b * b - G - (G - a * a)) * (P j * g j))).
    - apply sum_le. intros j Hj. destruct (Hg j Hj) as [->|B]; [rewrite !Rmult_0_l; lra|].
      specialize (HP j Hj). assert (Ch := chord (a * a) (b * b) (g j) G B HG).
      apply (Rmult_le_compat_l (P j)) in Ch; [|easy]. lra.
    - rewrite sum_plus, !sum_scal, H1. fold G. lra. }
  rewrite E.
  assert (K : (b * b - G) * (G - a * a) <= G * ((b - a) * (b - a))) by (assert (0 <= (G - a * b) * (G - a * b)) by apply Rle_0_sqr; lra).
  assert (D : 0 < (b - a) * (b + a)) by (apply Rmult_lt_0_compat; lra).
  apply (Rmult_le_reg_r (G * ((b - a) * (b + a)))); [now apply Rmult_lt_0_compat|].
  replace (S / G / 2 * (G * ((b - a) * (b + a)))) with (S * (b * b - a * a) / 2) by (field; lra).
  replace ((b - a) / (b + a) * (G * ((b - a) * (b + a)))) with (G * ((b - a) * (b - a))) by (field; lra).
  lra.
Qed.

(** tanh(x/4) in the exponentials of x/2. *)
Lemma tanh_quarter lo hi : tanh ((hi - lo) / 4) = (exp (hi / 2) - exp (lo / 2)) / (exp (hi / 2) + exp (lo / 2)).
Proof.
  unfold tanh, sinh, cosh. set (x := exp ((hi - lo) / 4)).
  assert (X : 0 < x) by apply exp_pos. assert (L := exp_pos (lo / 2)).
  replace (exp (- ((hi - lo) / 4))) with (/ x) by (unfold x; now rewrite exp_Ropp).
  replace (exp (hi / 2)) with (x * x * exp (lo / 2)) by (unfold x; rewrite <- !exp_plus; f_equal; field).
  field. repeat split; try lra; nra.
Qed.

(** tanh grows. *)
Lemma tanh_le x y : x <= y -> tanh x <= tanh y.
Proof.
  intros H. replace x with ((4 * x - 0) / 4) by field. replace y with ((4 * y - 0) / 4) by field. rewrite !tanh_quarter.
  assert (E : exp (4 * x / 2) <= exp (4 * y / 2)) by (destruct H as [H| ->]; [left; apply exp_increasing; lra|lra]).
  assert (A := exp_pos (4 * x / 2)). assert (B := exp_pos (0 / 2)). set (p := exp _) in *. set (q := exp (4 * y / 2)) in *. set (o := exp (0 / 2)) in *.
  apply Rminus_le. replace ((p - o) / (p + o) - (q - o) / (q + o)) with (- (2 * o * (q - p) / ((p + o) * (q + o)))) by (field; lra).
  assert (0 <= 2 * o * (q - p) / ((p + o) * (q + o))); [|lra].
  apply Rmult_le_pos; [apply Rmult_le_pos; lra|]. apply Rlt_le, Rinv_0_lt_compat, Rmult_lt_0_compat; lra.
Qed.

(** Adding β to logits reweights their softmax by exp β. *)
Lemma softmax_reweighted m mu z beta j :
  sees m mu ->
  softmax m mu (fun l => z l + beta l) j
  = softmax m mu z j * exp (beta j) / sum m (fun l => softmax m mu z l * exp (beta l)).
Proof.
  intros S. assert (T := total_pos m mu z S). assert (T' := total_pos m mu (fun l => z l + beta l) S).
  unfold softmax. rewrite (sum_ext m (fun l => mu l * exp (z l) / _ * exp (beta l))
    (fun l => mu l * exp (z l + beta l) / sum m (fun p => mu p * exp (z p)))) by (intros; rewrite exp_plus; field; lra).
  rewrite sum_div, exp_plus. field. lra.
Qed.

(** TV(P(z), P(z + β)) ≤ tanh(osc(β)/4), for every row of logits, every mask and every β. *)
Theorem Q3_any_logits m mu z beta osc :
  sees m mu -> oscillates m mu beta osc -> tv m (softmax m mu z) (softmax m mu (fun j => z j + beta j)) <= tanh (osc / 4).
Proof.
  intros S O. destruct (least_seen m mu beta (proj2 S)) as (p & Hp & Pp & L).
  destruct (least_seen m mu (fun j => - beta j) (proj2 S)) as (q & Hq & Pq & M).
  set (lo := beta p) in *. set (hi := beta q).
  assert (HI : forall j, (j < m)%nat -> 0 < mu j -> lo <= beta j <= hi) by (intros j Hj Pj; specialize (M j Hj Pj); specialize (L j Hj Pj); unfold hi; lra).
  assert (W : forall j, (j < m)%nat -> softmax m mu z j = 0 \/ lo <= beta j <= hi).
  { intros j Hj. destruct (proj1 S j Hj) as [P|Z]; [right; auto|left]. unfold softmax. rewrite <- Z. unfold Rdiv. ring. }
  apply Rle_trans with (tanh ((hi - lo) / 4)); [|apply tanh_le; assert (hi - lo <= osc) by (now apply O); lra].
  unfold tv. rewrite (sum_ext m _ (fun j => Rabs (softmax m mu z j * exp (beta j) / sum m (fun l => softmax m mu z l * exp (beta l)) - softmax m mu z j)))
    by (intros; now rewrite softmax_reweighted).
  assert (half : forall x, exp (x / 2) * exp (x / 2) = exp x) by (intros; rewrite <- exp_plus; f_equal; field).
  destruct (HI q Hq Pq) as [[Lt|Eq] _].
  - rewrite tanh_quarter. apply (reweighted m (softmax m mu z) (fun j => exp (beta j))).
    + split; [apply exp_pos|apply exp_increasing; unfold hi; lra].
    + intros. now apply softmax_nonneg.
    + now apply softmax_sum.
    + intros j Hj. destruct (W j Hj) as [->|[A B]]; [now left|right]. rewrite !half.
      split; [destruct A as [A| ->]; [left; now apply exp_increasing|lra]|destruct B as [B| ->]; [left; now apply exp_increasing|lra]].
  - replace ((hi - lo) / 4) with 0 by (unfold hi; rewrite <- Eq; field). replace (tanh 0) with 0 by (unfold tanh, sinh; rewrite Ropp_0; field; assert (X := cosh_0); lra).
    rewrite sum_zero; [lra|]. intros j Hj.
    rewrite (sum_ext m (fun l => softmax m mu z l * exp (beta l)) (fun l => softmax m mu z l * exp lo)).
    2: { intros l Hl. destruct (W l Hl) as [->|B]; [ring|]. replace (beta l) with lo by (unfold hi in B; lra). easy. }
    rewrite sum_scal_r, softmax_sum by easy. assert (X := exp_pos lo).
    destruct (W j Hj) as [->|B].
    + replace (0 * exp (beta j) / (1 * exp lo) - 0) with 0 by (field; lra). apply Rabs_R0.
    + replace (beta j) with lo by (unfold hi in B; lra). replace (softmax m mu z j * exp lo / (1 * exp lo) - softmax m mu z j) with 0 by (field; lra). apply Rabs_R0.
Qed.

(** In a head: b_q moves the weights of row i by at most tanh(osc(β)/4), osc over the keys that the row sees. *)
Theorem Q3_bound H bq bk i osc :
  sees (keys H) (mask H i) -> oscillates (keys H) (mask H i) (beta H bq bk) osc ->
  tv (keys H) (weights H zero bk i) (weights H bq bk i) <= tanh (osc / 4).
Proof.
  intros S O. unfold weights. replace (logit H bq bk i) with (fun j => logit H zero bk i j + beta H bq bk j).
  - now apply Q3_any_logits.
  - extensionality j. symmetry. apply Q1_one_number_a_key.
Qed.

(** The bound is attained, for every number m ≥ 2 of keys, all seen, and every osc ≥ 0: by a β that lifts one key alone. *)
Theorem Q3_attained m osc :
  (2 <= m)%nat -> 0 <= osc ->
  let mu := fun _ : nat => 1 in let beta := fun j => osc * unit 0 j in
  oscillates m mu beta osc /\ exists z, tv m (softmax m mu z) (softmax m mu (fun j => z j + beta j)) = tanh (osc / 4).
Proof.
  intros Hm Ho mu beta. split.
  { intros j l _ _ _ _. unfold beta, unit. destruct (Nat.eqb j 0), (Nat.eqb l 0); lra. }
  destruct m as [|m]; [lia|]. assert (Hn : 0 < INR m) by (apply (lt_INR 0); lia).
  set (x := exp (osc / 2)). assert (X : 1 <= x) by (unfold x; rewrite <- exp_0; destruct Ho as [Ho| <-]; [left; apply exp_increasing; lra|right; f_equal; field]).
  assert (MX : 0 < INR m * x) by (apply Rmult_lt_0_compat; lra).
  (* key 0 starts with 1/(1 + x) of the weight, the others share the rest *)
  exists (fun j => unit 0 j * (ln (INR m) - osc / 2)).
  assert (head_ : forall (f : nat -> R) n, sum (S n) f = f 0%nat + sum n (fun j => f (S j))).
  { intros f n. induction n; [simpl; lra|]. change (sum (S (S n)) f) with (sum (S n) f + f (S n)). rewrite IHn. simpl. ring. }
  assert (E0 : exp (1 * (ln (INR m) - osc / 2)) = INR m / x).
  { rewrite Rmult_1_l. unfold Rminus. rewrite exp_plus, exp_ln, exp_Ropp by easy. easy. }
  assert (E1 : exp (1 * (ln (INR m) - osc / 2) + osc * 1) = INR m * x).
  { rewrite exp_plus, E0. replace (osc * 1) with (osc / 2 + osc / 2) by field. rewrite exp_plus. fold x. field. lra. }
  assert (T0 : sum (S m) (fun l => mu l * exp (unit 0 l * (ln (INR m) - osc / 2))) = INR m / x + INR m).
  { rewrite head_. unfold mu. simpl unit. unfold unit; simpl Nat.eqb. cbv iota. rewrite E0, (sum_ext m _ (fun _ => 1)).
    - rewrite sum_const. ring.
    - intros. rewrite Rmult_0_l, exp_0. ring. }
  assert (T1 : sum (S m) (fun l => mu l * exp (unit 0 l * (ln (INR m) - osc / 2) + beta l)) = INR m * x + INR m).
  { rewrite head_. unfold mu, beta, unit. simpl Nat.eqb. cbv iota. rewrite E1, (sum_ext m _ (fun _ => 1)).
    - rewrite sum_const. ring.
    - intros. rewrite Rmult_0_l, Rmult_0_r, Rplus_0_r, exp_0. ring. }
  unfold tv, softmax. rewrite T0, T1, head_. unfold mu at 1 2, beta at 1, unit at 1 2 3. simpl Nat.eqb. cbv iota. rewrite E0, E1.
  rewrite (sum_ext m _ (fun _ => (x - 1) / (x + 1) / INR m)).
  - rewrite sum_const.
    replace (1 * (INR m * x) / (INR m * x + INR m) - 1 * (INR m / x) / (INR m / x + INR m)) with ((x - 1) / (x + 1)) by (field; repeat split; lra).
    rewrite Rabs_pos_eq by (apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat; lra]).
    replace (osc / 4) with ((osc - 0) / 4) by field. rewrite tanh_quarter. replace (0 / 2) with 0 by field. rewrite exp_0. fold x.
    field. split; lra.
  - intros j _. unfold mu, beta, unit. simpl Nat.eqb. cbv iota. rewrite Rmult_0_l, Rmult_0_r, Rplus_0_r, exp_0.
    replace (1 * 1 / (INR m * x + INR m) - 1 * 1 / (INR m / x + INR m)) with (- ((x - 1) / (x + 1) / INR m)) by (field; repeat split; lra).
    rewrite Rabs_Ropp, Rabs_pos_eq; [easy|]. apply Rmult_le_pos; [apply Rmult_le_pos; [lra|]|]; apply Rlt_le, Rinv_0_lt_compat; lra.
Qed.

(** Any norm, or seminorm, on the values. *)
Definition seminorm (N : vec -> R) : Prop :=
  (forall u v, N (add u v) <= N u + N v) /\ (forall t u, N (scale_by t u) = Rabs t * N u).

(** The seminorm of a sum is at most the sum of the seminorms. *)
Lemma seminorm_sum N n (f : mat) : seminorm N -> N (fun c => sum n (fun j => f j c)) <= sum n (fun j => N (f j)).
Proof.
  intros [T Z]. induction n; simpl.
  - replace (fun _ : nat => 0) with (scale_by 0 zero) by (extensionality c; unfold scale_by; ring). rewrite Z, Rabs_R0. lra.
  - assert (Q := T (fun c => sum n (fun j => f j c)) (f n)). unfold add in Q. lra.
Qed.

(** Two mixtures of the same values lie within diam(V)·TV of each other. *)
Lemma mixtures_apart N m (p p' : vec) (v : mat) bv diam :
  seminorm N -> sum m p = 1 -> sum m p' = 1 ->
  (forall j l, (j < m)%nat -> (l < m)%nat -> p j = p' j \/ p l = p' l \/ N (fun c => v j c - v l c) <= diam) ->
  N (fun c => mixture m p' v bv c - mixture m p v bv c) <= diam * tv m p p'.
Proof.
  intros HN H1 H1' Hd. set (D := fun j => p' j - p j).
  set (up := fun j => (Rabs (D j) + D j) / 2). set (dn := fun j => (Rabs (D j) - D j) / 2).
  assert (D0 : sum m D = 0) by (unfold D; rewrite sum_minus; lra).
  assert (U : sum m up = tv m p p') by (unfold up, tv; rewrite sum_div, sum_plus, D0; unfold D; field).
  assert (V : sum m dn = tv m p p') by (unfold dn, tv; rewrite sum_div, sum_minus, D0; unfold D; field).
  assert (up0 : forall j, 0 <= up j) by (intros; unfold up, Rabs; destruct (Rcase_abs _); lra).
  assert (dn0 : forall j, 0 <= dn j) by (intros; unfold dn, Rabs; destruct (Rcase_abs _); lra).
  set (T := tv m p p') in *.
  assert (T0 : 0 <= T) by (rewrite <- U; apply sum_nonneg; auto).
  set (X := fun c => mixture m p' v bv c - mixture m p v bv c).
  assert (EX : forall c, X c = sum m (fun j => D j * v j c)).
  { intros c. unfold X. rewrite (mixture_shift m p' v bv c), (mixture_shift m p v bv c), H1, H1'. unfold mixture, zero, D.
    rewrite (sum_ext m (fun j => (p' j - p j) * v j c) (fun j => p' j * (v j c + 0) - p j * (v j c + 0))) by (intros; ring).
    rewrite sum_minus. ring. }
  assert (TX : scale_by T X = fun c => sum m (fun j => sum m (fun l => up j * dn l * (v j c - v l c)))).
  { extensionality c. unfold scale_by. rewrite EX.
    rewrite (sum_ext m (fun j => sum m (fun l => up j * dn l * (v j c - v l c))) (fun j => up j * v j c * T - up j * sum m (fun l => dn l * v l c))).
    - rewrite sum_minus, !sum_scal_r, U. rewrite <- (Rmult_comm T), <- Rmult_minus_distr_l. f_equal.
      rewrite <- sum_minus. apply sum_ext. intros. unfold up, dn. field.
    - intros j _. rewrite <- V, <- sum_scal, <- sum_scal, <- sum_minus. apply sum_ext. intros. ring. }
  assert (B : T * N X <= T * T * diam).
  { rewrite <- (Rabs_pos_eq T T0) at 1. rewrite <- (proj2 HN), TX.
    eapply Rle_trans; [apply (seminorm_sum N m (fun j c => sum m (fun l => up j * dn l * (v j c - v l c))) HN)|].
    rewrite <- U at 1. rewrite <- V, Rmult_assoc, <- sum_scal_r. apply sum_le. intros j Hj.
    eapply Rle_trans; [apply (seminorm_sum N m (fun l c => up j * dn l * (v j c - v l c)) HN)|].
    rewrite <- sum_scal_r, <- sum_scal. apply sum_le. intros l Hl.
    change (fun c => up j * dn l * (v j c - v l c)) with (scale_by (up j * dn l) (fun c => v j c - v l c)).
    rewrite (proj2 HN), Rabs_pos_eq by now apply Rmult_le_pos. rewrite <- Rmult_assoc.
    destruct (Hd j l Hj Hl) as [E|[E|B]].
    - replace (up j) with 0 by (unfold up, D; rewrite E, Rminus_eq_0, Rabs_R0; field). lra.
    - replace (dn l) with 0 by (unfold dn, D; rewrite E, Rminus_eq_0, Rabs_R0; field). lra.
    - apply Rmult_le_compat_l; [now apply Rmult_le_pos|easy]. }
  destruct T0 as [P|Z].
  - apply (Rmult_le_reg_l T); [easy|]. lra.
  - rewrite <- Z, Rmult_0_r. replace X with (scale_by 0 X); [rewrite (proj2 HN), Rabs_R0; lra|].
    extensionality c. unfold scale_by. rewrite EX, Rmult_0_l. symmetry. apply sum_zero. intros j Hj.
    assert (up j = 0) by (apply (sum_zero_inv m up); auto; lra). assert (dn j = 0) by (apply (sum_zero_inv m dn); auto; lra).
    assert (D j = up j - dn j) as -> by (unfold up, dn; field). replace (up j - dn j) with 0 by lra. ring.
Qed.

(** Hence ‖O_i(b_q) − O_i(0)‖ ≤ diam(V)·tanh(osc(β)/4), in any norm; diam over the values that the row sees. *)
Theorem Q3_output N H bq bk bv i osc diam :
  seminorm N -> sees (keys H) (mask H i) -> oscillates (keys H) (mask H i) (beta H bq bk) osc -> 0 <= diam ->
  (forall j l, (j < keys H)%nat -> (l < keys H)%nat -> 0 < mask H i j -> 0 < mask H i l ->
     N (fun c => value H j c - value H l c) <= diam) ->
  N (fun c => output H bq bk bv i c - output H zero bk bv i c) <= diam * tanh (osc / 4).
Proof.
  intros HN S O D0 D. eapply Rle_trans; [apply (mixtures_apart N (keys H) (weights H zero bk i) (weights H bq bk i)); auto; try now apply softmax_sum|].
  - assert (hidden : forall j, 0 = mask H i j -> weights H zero bk i j = weights H bq bk i j)
      by (intros j E; unfold weights, softmax; rewrite <- E; unfold Rdiv; ring).
    intros j l Hj Hl. destruct (proj1 S j Hj) as [Pj|Zj]; [|left; auto]. destruct (proj1 S l Hl) as [Pl|Zl]; [|right; left; auto].
    right. right. now apply D.
  - apply Rmult_le_compat_l; [easy|]. now apply Q3_bound.
Qed.

(** K4, rounding: two runs, with and without b_k, whose computed weights are exact softmaxes of logits off by at most ε₀ and
    ε₁ (rounding.py derives how large these are), and whose mixtures are off by at most θ each. A shared shift c is what b_k
    adds. Then the outputs differ by at most diam(V)·tanh((ε₀ + ε₁)/2) + 2θ, θ = γ_2S max|V|. *)
Theorem K4_rounding m mu z c (r0 r1 : vec) e0 e1 (v : vec) out0 out1 diam theta :
  sees m mu -> 0 <= diam ->
  (forall j, (j < m)%nat -> Rabs (r0 j) <= e0) -> (forall j, (j < m)%nat -> Rabs (r1 j) <= e1) ->
  (forall j l, (j < m)%nat -> (l < m)%nat -> Rabs (v j - v l) <= diam) ->
  Rabs (out0 - sum m (fun j => softmax m mu (fun l => z l + r0 l) j * v j)) <= theta ->
  Rabs (out1 - sum m (fun j => softmax m mu (fun l => z l + c + r1 l) j * v j)) <= theta ->
  Rabs (out1 - out0) <= diam * tanh ((e0 + e1) / 2) + 2 * theta.
Proof.
  intros S D0 R0 R1 D T0 T1.
  set (p := softmax m mu (fun l => z l + r0 l)) in *. set (p' := softmax m mu (fun l => z l + c + r1 l)) in *.
  assert (P' : p' = softmax m mu (fun l => (z l + r0 l) + (r1 l - r0 l))) by (apply (softmax_shared _ _ _ _ c); intros; ring).
  assert (V : tv m p p' <= tanh ((e0 + e1) / 2)).
  { rewrite P'. replace ((e0 + e1) / 2) with (2 * (e0 + e1) / 4) by field. apply (Q3_any_logits m mu _ (fun l => r1 l - r0 l)); [easy|].
    intros j l Hj Hl _ _. assert (A := R0 j Hj). assert (B := R0 l Hl). assert (A' := R1 j Hj). assert (B' := R1 l Hl).
    apply abs_bounds in A, B, A', B'. lra. }
  set (N := fun u : vec => Rabs (u 0%nat)).
  assert (HN : seminorm N) by (split; intros; unfold N, add, scale_by; [apply Rabs_triang|apply Rabs_mult]).
  assert (M := mixtures_apart N m p p' (fun j _ => v j) zero diam HN (softmax_sum _ _ _ S) (softmax_sum _ _ _ S) (fun j l Hj Hl => or_intror (or_intror (D j l Hj Hl)))).
  unfold N, mixture, zero in M.
  rewrite !(sum_ext m (fun j => _ * (v j + 0)) (fun j => _ j * v j)) in M by (intros; rewrite Rplus_0_r; reflexivity).
  assert (Q : diam * tv m p p' <= diam * tanh ((e0 + e1) / 2)) by now apply Rmult_le_compat_l.
  apply abs_bounds in T0, T1, M. apply Rabs_le. lra.
Qed.

(** ** Q4 *)

(** log P_ij − log P_il − log P_rj + log P_rl does not depend on b_q: two queries, two keys that both see, any totals of the
    rows, so that sinks and foreign keys may be in them and may depend on b_q. *)
Theorem Q4_blind_to_who_asks H bq bk (total total0 : vec) i r j l :
  0 < mask H i j -> 0 < mask H i l -> 0 < mask H r j -> 0 < mask H r l ->
  (forall x, 0 < total x) -> (forall x, 0 < total0 x) ->
  let logP := fun b t x y => ln (mask H x y * exp (logit H b bk x y) / t x) in
  logP bq total i j - logP bq total i l - logP bq total r j + logP bq total r l
  = logP zero total0 i j - logP zero total0 i l - logP zero total0 r j + logP zero total0 r l.
Proof.
  intros Mij Mil Mrj Mrl T T0 logP.
  assert (E : forall b t x y, 0 < mask H x y -> 0 < t x -> logP b t x y = ln (mask H x y) + logit H b bk x y - ln (t x)).
  { intros b t x y M P. unfold logP, Rdiv. assert (X := exp_pos (logit H b bk x y)).
    rewrite ln_mult, ln_Rinv, ln_mult, ln_exp; auto; try lra; [now apply Rmult_lt_0_compat|now apply Rinv_0_lt_compat]. }
  rewrite !E by auto. rewrite !(Q1_one_number_a_key H bq). ring.
Qed.

(** ** Q5 *)

(** The mean key. *)
Definition mean_key (H : Head) : vec := fun a => sum (keys H) (fun j => key H j a) / INR (keys H).

(** b_q leaves the weights of a row that sees all keys as they are iff it is orthogonal to every k_j − k̄. *)
Theorem Q5_null_directions H bq bk i :
  (0 < keys H)%nat -> scale H <> 0 -> (forall j, (j < keys H)%nat -> 0 < mask H i j) ->
  (forall j, (j < keys H)%nat -> weights H bq bk i j = weights H zero bk i j)
  <-> (forall j, (j < keys H)%nat -> dot (dims H) bq (fun a => key H j a - mean_key H a) = 0).
Proof.
  intros Hm Hs Hmu. set (m := keys H) in *. set (b := fun j => dot (dims H) bq (key H j)).
  assert (S : sees m (mask H i)) by (split; [intros; apply Rlt_le; auto|exists 0%nat; auto]).
  assert (mean : dot (dims H) bq (mean_key H) = sum m b / INR m).
  { unfold mean_key. fold m. replace (fun a => sum m (fun j => key H j a) / INR m) with (scale_by (/ INR m) (fun a => sum m (fun j => key H j a)))
      by (extensionality a; unfold scale_by, Rdiv; ring). rewrite dot_scale_r, dot_sum_r. fold b. unfold Rdiv. ring. }
  assert (Hn : INR m <> 0) by (apply not_0_INR; lia).
  split.
  - intros E j Hj. rewrite dot_sub_r, mean. fold (b j).
    assert (same : forall l, (l < m)%nat -> b l = b j).
    { intros l Hl. assert (El := E l Hl). assert (Ej := E j Hj).
      rewrite !Q1_part_that_moves in El, Ej. fold m in El, Ej.
      assert (Z : forall x, logit H zero bk i x + scale H * dot (dims H) (key H x) zero = logit H zero bk i x) by (intros; rewrite dot_zero_r; ring).
      replace (fun x => logit H zero bk i x + scale H * dot (dims H) (key H x) zero) with (logit H zero bk i) in El, Ej by (extensionality x; auto).
      rewrite softmax_reweighted in El, Ej by easy.
      set (T := sum m _) in El, Ej.
      assert (TP : 0 < T).
      { unfold T. apply sum_pos; [intros; apply Rmult_le_pos; [now apply softmax_nonneg|apply Rlt_le, exp_pos]|].
        exists j. split; [easy|]. apply Rmult_lt_0_compat; [now apply softmax_pos; auto|apply exp_pos]. }
      assert (G : forall x, (x < m)%nat -> softmax m (mask H i) (logit H zero bk i) x * exp (scale H * dot (dims H) (key H x) bq) / T
                  = softmax m (mask H i) (logit H zero bk i) x -> exp (scale H * dot (dims H) (key H x) bq) = T).
      { intros x Hx Q. assert (P := softmax_pos m (mask H i) (logit H zero bk i) x S (Hmu x Hx)).
        apply (Rmult_eq_compat_r T) in Q. unfold Rdiv in Q. rewrite Rmult_assoc, Rinv_l, Rmult_1_r in Q by lra.
        apply Rmult_eq_reg_l in Q; lra. }
      apply G in El; auto. apply G in Ej; auto. rewrite <- Ej in El. apply exp_inv in El.
      apply Rmult_eq_reg_l in El; [|easy]. unfold b. now rewrite !(dot_comm _ bq). }
    rewrite (sum_ext m b (fun _ => b j)) by auto. rewrite sum_const. field. easy.
  - intros E j Hj. rewrite !Q1_part_that_moves. fold m.
    rewrite <- (softmax_shift m (mask H i) (fun x => logit H zero bk i x + scale H * dot (dims H) (key H x) zero) (scale H * dot (dims H) bq (mean_key H))).
    apply softmax_ext; [intros l Hl|]; (rewrite dot_zero_r, (dot_comm _ (key H _))).
    + assert (Q := E l Hl). rewrite dot_sub_r in Q. replace (dot (dims H) bq (key H l)) with (dot (dims H) bq (mean_key H)) by lra. ring.
    + assert (Q := E j Hj). rewrite dot_sub_r in Q. replace (dot (dims H) bq (key H j)) with (dot (dims H) bq (mean_key H)) by lra. ring.
Qed.

(** O may stay although P moves: where all values that a row sees are equal, its output is that value, whatever b_q is. *)
Theorem Q5_equal_values H bq bk bv i (v : vec) :
  sees (keys H) (mask H i) -> (forall j c, (j < keys H)%nat -> 0 < mask H i j -> value H j c = v c) ->
  forall c, output H bq bk bv i c = v c + bv c.
Proof.
  intros S E c. unfold output, mixture.
  transitivity (sum (keys H) (fun j => weights H bq bk i j * (v c + bv c))); [|rewrite sum_scal_r; unfold weights; rewrite softmax_sum by easy; ring].
  apply sum_ext. intros j Hj. destruct (proj1 S j Hj) as [P|Z]; [now rewrite E|].
  unfold weights, softmax. rewrite <- Z. unfold Rdiv. ring.
Qed.

(** ** Q6 *)

(** 1 − P_ip ≤ (m − 1) e^{osc − tΔ}: key p is seen and beats every other key in sight by Δ; osc bounds by how much the logits
    (with their masks) of the others exceed p's. *)
Theorem Q6_saturation m mu z beta p gap osc t :
  sees m mu -> (p < m)%nat -> 0 < mu p -> 0 <= t ->
  (forall j, (j < m)%nat -> mu j * exp (z j) <= exp osc * (mu p * exp (z p))) ->
  (forall j, (j < m)%nat -> j <> p -> 0 < mu j -> gap <= beta p - beta j) ->
  1 - softmax m mu (fun j => z j + t * beta j) p <= (INR m - 1) * exp (osc - t * gap).
Proof.
  intros S Hp Pp Ht O G. set (P := softmax m mu (fun j => z j + t * beta j)). set (B := exp (osc - t * gap)).
  assert (BP : 0 < B) by apply exp_pos.
  assert (P1 : P p <= 1) by (rewrite <- (softmax_sum m mu (fun j => z j + t * beta j) S); apply sum_ge_term; auto; intros; now apply softmax_nonneg).
  assert (each : forall j, (j < m)%nat -> j <> p -> P j <= B).
  { intros j Hj Nj. apply Rle_trans with (B * P p); [|rewrite <- (Rmult_1_r B) at 2; apply Rmult_le_compat_l; lra].
    unfold P, softmax, Rdiv. rewrite <- Rmult_assoc. apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat; now apply total_pos|].
    destruct (proj1 S j Hj) as [Pj|Zj]; [|rewrite <- Zj, Rmult_0_l; apply Rmult_le_pos; [lra|apply Rmult_le_pos; [lra|apply Rlt_le, exp_pos]]].
    unfold B, Rminus. rewrite !exp_plus.
    assert (X : exp (t * beta j) <= exp (- (t * gap)) * exp (t * beta p)).
    { rewrite <- exp_plus. assert (Q : t * beta j <= - (t * gap) + t * beta p) by (specialize (G j Hj Nj Pj); nra).
      destruct Q as [Q|Q]; [left; now apply exp_increasing|right; now rewrite Q]. }
    replace (mu j * (exp (z j) * exp (t * beta j))) with (mu j * exp (z j) * exp (t * beta j)) by ring.
    replace (exp osc * exp (- (t * gap)) * (mu p * (exp (z p) * exp (t * beta p)))) with (exp osc * (mu p * exp (z p)) * (exp (- (t * gap)) * exp (t * beta p))) by ring.
    apply Rmult_le_compat; auto; [apply Rmult_le_pos; [lra|]|]; apply Rlt_le, exp_pos. }
  assert (SP := softmax_sum m mu (fun j => z j + t * beta j) S). fold P in SP.
  rewrite <- SP at 1. rewrite <- (sum_unit m p P Hp), <- sum_minus.
  apply Rle_trans with (sum m (fun j => B - unit p j * B)).
  - apply sum_le. intros j Hj. unfold unit. destruct (Nat.eqb_spec j p) as [->|N]; [lra|]. specialize (each j Hj N). lra.
  - rewrite sum_minus, sum_const, (sum_unit m p (fun _ => B)) by easy. lra.
Qed.

(** As t → ∞ all of the weight goes to p. *)
Theorem Q6_limit m mu z beta p gap osc eps :
  sees m mu -> (p < m)%nat -> 0 < mu p -> 0 < gap -> 0 < eps ->
  (forall j, (j < m)%nat -> mu j * exp (z j) <= exp osc * (mu p * exp (z p))) ->
  (forall j, (j < m)%nat -> j <> p -> 0 < mu j -> gap <= beta p - beta j) ->
  exists t0, forall t, t0 <= t -> 1 - softmax m mu (fun j => z j + t * beta j) p < eps.
Proof.
  intros S Hp Pp Hg He O G.
  assert (M : 0 <= INR m - 1) by (assert (1 <= INR m) by (apply (le_INR 1); lia); lra).
  set (y := (INR m - 1) / eps). assert (Y : 0 <= y) by (apply Rmult_le_pos; [easy|apply Rlt_le, Rinv_0_lt_compat; lra]).
  exists (Rmax 0 ((osc + y) / gap)). intros t Ht.
  assert (T0 : 0 <= t) by (eapply Rle_trans; [apply Rmax_l|exact Ht]).
  assert (T1 : osc + y <= t * gap).
  { assert (Q : (osc + y) / gap <= t) by (eapply Rle_trans; [apply Rmax_r|exact Ht]).
    apply (Rmult_le_compat_r gap) in Q; [|lra]. unfold Rdiv in Q. rewrite Rmult_assoc, Rinv_l in Q; lra. }
  eapply Rle_lt_trans; [now apply (Q6_saturation m mu z beta p gap osc t)|].
  assert (X : exp (osc - t * gap) <= / (1 + y)).
  { replace (osc - t * gap) with (- (t * gap - osc)) by ring. rewrite exp_Ropp. apply Rinv_le_contravar; [lra|].
    assert (1 + (t * gap - osc) <= exp (t * gap - osc)) by (destruct (Req_dec (t * gap - osc) 0) as [->|N]; [rewrite exp_0; lra|apply Rlt_le, exp_ineq1; easy]). lra. }
  apply Rle_lt_trans with ((INR m - 1) * / (1 + y)); [now apply Rmult_le_compat_l|].
  apply (Rmult_lt_reg_r (1 + y)); [lra|]. rewrite Rmult_assoc, Rinv_l by lra.
  replace (INR m - 1) with (eps * y) by (unfold y; field; lra). lra.
Qed.

(** ** Q7 *)

(** Under rotary positions b_q adds k_j·R_{i−j} b_q: one number for each key and distance. *)
Theorem Q7_rotary p omega i j qx qy kx ky bx by_ :
  plane_dot p (turned_x omega i (add qx bx) (add qy by_)) (turned_y omega i (add qx bx) (add qy by_)) (turned_x omega j kx ky) (turned_y omega j kx ky)
  = plane_dot p (turned_x omega i qx qy) (turned_y omega i qx qy) (turned_x omega j kx ky) (turned_y omega j kx ky)
    + plane_dot p kx ky (turned_x omega (i - j) bx by_) (turned_y omega (i - j) bx by_).
Proof.
  assert (C : forall x y x' y', plane_dot p x y x' y' = plane_dot p x' y' x y) by (intros; unfold plane_dot; f_equal; apply dot_comm).
  rewrite !(C (turned_x omega i _ _)), !rotary_relative. unfold plane_dot, dot. rewrite <- !sum_plus. apply sum_ext. intros u _.
  unfold turned_x, turned_y, turn_x, turn_y, add. ring.
Qed.

(** Q4 fails there: two tokens half a turn apart, equal keys (1, 0), b_q = (1, 0); the double difference of β is not 0. *)
Theorem Q7_not_blind :
  let beta := fun i j => plane_dot 1 (fun _ => 1) (fun _ => 0)
    (turned_x (fun _ => PI) (INR i - INR j) (fun _ => 1) (fun _ => 0)) (turned_y (fun _ => PI) (INR i - INR j) (fun _ => 1) (fun _ => 0)) in
  beta 0%nat 0%nat - beta 0%nat 1%nat - beta 1%nat 0%nat + beta 1%nat 1%nat = 4.
Proof.
  unfold plane_dot, dot, turned_x, turned_y, turn_x, turn_y. simpl.
  replace (PI * (0 - 0)) with 0 by ring. replace (PI * (0 - 1)) with (- PI) by ring.
  replace (PI * (1 - 0)) with PI by ring. replace (PI * (1 - 1)) with 0 by ring.
  rewrite cos_neg, cos_PI, cos_0. ring.
Qed.

(** Q3 holds with the oscillation of each row's own β_ij. *)
Theorem Q7_bound m mu (z beta : mat) (osc : vec) i :
  sees m mu -> oscillates m mu (beta i) (osc i) -> tv m (softmax m mu (z i)) (softmax m mu (fun j => z i j + beta i j)) <= tanh (osc i / 4).
Proof. now apply Q3_any_logits. Qed.

(** Q2 holds as it does for any logits. *)
Theorem Q7_hull m mu (z beta : mat) v bv i :
  sees m mu ->
  exists w : vec, (forall j, (j < m)%nat -> 0 <= w j) /\ (forall j, mu j = 0 -> w j = 0) /\ sum m w = 1
    /\ forall c, mixture m (softmax m mu (fun j => z i j + beta i j)) v bv c = sum m (fun j => w j * (v j c + bv c)).
Proof. apply Q2_convex. Qed.
