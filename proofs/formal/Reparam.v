(** R2, and R1 in part: a bias that is made of other numbers, b = g(θ). (LoRA's reach, which needs ranks, is in Ranks.v.) *)
From Coq Require Import Reals Lra Lia FunctionalExtensionality.
From Minibeft Require Import Sums Head KeyBias ValueBias Training.
Open Scope R_scope.

(** ** R2 *)

(** K1 and K3 for b_k = g(θ): the outputs do not depend on θ, for every g: LoRA, VeRA, DoRA, a constant. *)
Theorem R2_no_effect (g : vec -> nat -> vec) L bq bv bo theta theta' :
  attention L bq (g theta) bv bo = attention L bq (g theta') bv bo.
Proof. now rewrite K1_layer, (K1_layer _ _ (g theta')). Qed.

(** K2: ∂L/∂θ_p = 0, for every loss of the outputs, though g need not be differentiable. *)
Theorem R2_no_gradient (g : vec -> nat -> vec) L bq bv bo (loss : (nat -> nat -> vec) -> R) theta p :
  derivable_pt_lim (fun t => loss (attention L bq (g (add theta (scale_by t (unit p)))) bv bo)) 0 0.
Proof. apply derive_constant. intros t. now rewrite (R2_no_effect g L bq bv bo _ (add theta (scale_by 0 (unit p)))). Qed.

(** V1 for b_v = g(θ): the output is shifted by g(θ). *)
Theorem R2_shift (g : vec -> vec) H bq bk theta i c :
  sees (keys H) (mask H i) -> output H bq bk (g theta) i c = output H bq bk zero i c + g theta c.
Proof. apply V1_shift. Qed.

(** ∂L/∂θ_p = Σ_a J_ap ∂L/∂b_a, that is Jᵀ ∂L/∂b, for every differentiable g and loss of d bias entries. *)
Theorem R2_chain_rule d (g : vec -> vec) (loss : vec -> R) theta p (J G : vec) :
  gradient 1 d (fun b => loss (b 0%nat)) (fun _ => g theta) (fun _ => G) ->
  (forall a, (a < d)%nat -> derivable_pt_lim (fun t => g (add theta (scale_by t (unit p))) a) 0 (J a)) ->
  derivable_pt_lim (fun t => loss (g (add theta (scale_by t (unit p))))) 0 (dot d J G).
Proof.
  intros HG HJ. specialize (HG (fun t _ => g (add theta (scale_by t (unit p)))) (fun _ => J)).
  refine (derive_is _ _ _ _ (HG _ _) _).
  - intros. replace (add theta (scale_by 0 (unit p))) with theta; [easy|]. extensionality x. unfold add, scale_by. ring.
  - intros _ a _ Ha. now apply HJ.
  - simpl. unfold dot. rewrite Rplus_0_l. apply sum_ext. intros. ring.
Qed.

(** ** R1, the forms other than LoRA. The bias is viewed as r×c; A is k×r and B is c×k, as in the official code. *)

(** VeRA: Δ = s Aᵀ diag(λ) Bᵀ diag(μ), entry (x, y). *)
Definition vera (k : nat) (s : R) (A B : mat) (lambda mu : vec) : mat :=
  fun x y => s * sum k (fun q => A q x * lambda q * (B y q * mu y)).

(** VeRA's Δ is 0 if a diagonal is. *)
Theorem R1_vera_zero k s A B lambda mu c x y :
  (y < c)%nat -> (forall q, (q < k)%nat -> lambda q = 0) \/ (forall y, (y < c)%nat -> mu y = 0) -> vera k s A B lambda mu x y = 0.
Proof.
  intros Hy H. unfold vera. rewrite sum_zero; [ring|]. intros q Hq. destruct H as [H|H]; rewrite H by easy; ring.
Qed.

(** A vector is 0 on its first k entries or has one that is not. *)
Lemma zero_or_not k (u : vec) : (forall q, (q < k)%nat -> u q = 0) \/ exists q, (q < k)%nat /\ u q <> 0.
Proof.
  induction k as [|k [Z|(q & Hq & N)]]; [left; lia| |right; exists q; split; [lia|easy]].
  destruct (Req_dec (u k) 0) as [E|N]; [left|right; exists k; split; [lia|easy]].
  intros q Hq. destruct (Nat.eq_dec q k) as [->|]; [easy|apply Z; lia].
Qed.

(** Δ is 0 only then, where A has independent rows (so k ≤ r), B no entry 0 and s ≠ 0. *)
Theorem R1_vera_only_zero r c k s A B lambda mu :
  s <> 0 -> (forall y q, (y < c)%nat -> (q < k)%nat -> B y q <> 0) ->
  (forall w : vec, (forall x, (x < r)%nat -> sum k (fun q => w q * A q x) = 0) -> forall q, (q < k)%nat -> w q = 0) ->
  (forall x y, (x < r)%nat -> (y < c)%nat -> vera k s A B lambda mu x y = 0) ->
  (forall q, (q < k)%nat -> lambda q = 0) \/ (forall y, (y < c)%nat -> mu y = 0).
Proof.
  intros Hs HB HA Z.
  assert (P : forall y, (y < c)%nat -> forall q, (q < k)%nat -> lambda q * mu y = 0).
  { intros y Hy q Hq. assert (W := HA (fun q => lambda q * (B y q * mu y))). cbv beta in W.
    assert (E : lambda q * (B y q * mu y) = 0).
    { apply W; [|easy]. intros x Hx. specialize (Z x y Hx Hy). unfold vera in Z.
      rewrite (sum_ext k _ (fun q => A q x * lambda q * (B y q * mu y))) by (intros; ring).
      destruct (Rmult_integral _ _ Z); [easy|lra]. }
    assert (B y q <> 0) by auto. replace (lambda q * (B y q * mu y)) with (B y q * (lambda q * mu y)) in E by ring.
    destruct (Rmult_integral _ _ E); [easy|lra]. }
  destruct (zero_or_not k lambda) as [L|(q & Hq & N)]; [now left|right].
  intros y Hy. specialize (P y Hy q Hq). destruct (Rmult_integral _ _ P); [easy|lra].
Qed.

(** Its k + c numbers have one too many: (tλ, μ/t) gives the same Δ, so that each Δ other than 0 comes from a λ with an entry 1,
    of k + c − 1 free numbers. *)
Theorem R1_vera_dimension k s A B lambda mu :
  (exists q, (q < k)%nat /\ lambda q <> 0) ->
  exists lambda' mu', (exists q, (q < k)%nat /\ lambda' q = 1) /\ forall x y, vera k s A B lambda' mu' x y = vera k s A B lambda mu x y.
Proof.
  intros (q & Hq & N). exists (fun p => lambda p / lambda q), (fun y => lambda q * mu y). split.
  - exists q. split; [easy|]. field. easy.
  - intros x y. unfold vera. f_equal. apply sum_ext. intros p _. field. easy.
Qed.

(** VeRA1D: Δ = s σ 1, one number σ. *)
Definition vera1d (s sigma : R) : vec := fun _ => s * sigma.

(** It reaches exactly the line ℝ·1, if s ≠ 0. *)
Theorem R1_vera1d s (delta : vec) : s <> 0 -> (exists sigma, forall a, vera1d s sigma a = delta a) <-> exists x, forall a, delta a = x.
Proof.
  intros H. split; [intros (sigma & E); exists (s * sigma); intros; now rewrite <- E|].
  intros (x & E). exists (x / s). intros a. rewrite E. unfold vera1d. field. easy.
Qed.

(** DoRA: b + s t (b + Δ)/‖b + Δ‖, with LoRA's numbers and t. *)
Definition dora (d : nat) (s t : R) (b delta : vec) : vec := fun a => b a + s * t * (b a + delta a) / norm d (add b delta).

(** It starts (Δ = 0, t = ‖b‖) from (1 + s) b. *)
Theorem R1_dora_start d s b a : norm d b <> 0 -> dora d s (norm d b) b zero a = (1 + s) * b a.
Proof.
  intros H. unfold dora. replace (add b zero) with b by (extensionality x; unfold add, zero; ring). unfold zero. field. easy.
Qed.
