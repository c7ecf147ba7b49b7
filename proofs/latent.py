"""V9: a bias on the latent of MLA (DeepSeek V2 and V3), of which all heads make their keys and values.

It is added after the latent's norm, so what each head makes of it is one vector: a key bias, which does nothing (K1),
and a value bias, which is a shift (V1). MLA's rotary part has keys of its own; its share of the logits, t_ij here, does
not read the latent.
"""

from collections.abc import Iterator

from minibeft.proofs.key_bias import CASES as KEY_CASES
from minibeft.proofs.key_bias import weights
from minibeft.proofs.notation import a, b, f, i, j, mu, over, q, s, softmax, table, u, x, z
from minibeft.proofs.relation import says
from minibeft.proofs.statement import Part, needed, proof
from minibeft.proofs.steps import equal
from minibeft.proofs.value_bias import OUTPUT_CASES, folded

LATENT, UP_K, UP_V, ROTARY, W, BO = (table(name, real=True) for name in ("c", "U", "U'", "t", "W", "b°"))
FROM = over(x, UP_V[u, a, x] * b[x])  # U_v b_c, of head u


def made(up, bias: bool):
    """Dim a of what head u makes of the latent of key j; x runs over the latent."""
    return over(x, up[u, a, x] * (LATENT[j, x] + b[x] if bias else LATENT[j, x]))


def logit(bias: bool):
    """With the rotary part."""
    return s * over(a, q[u, i, a] * made(UP_K, bias)) + ROTARY[u, i, j]


P = softmax(z[u, i, j], mask=mu[u, i, j])


def output(bias: bool):
    return over(j, P * made(UP_V, bias))


def through(bias: bool, output_bias):
    return over(u, over(a, W[f, u, a] * output(bias))) + output_bias


@proof(
    "V9",
    keys=says(
        "A bias b_c on the latent c_j of MLA, k_j = U_k c_j and v_j = U_v c_j, has no effect through the keys",
        softmax(logit(bias=True), mask=mu[u, i, j]),
        "=",
        softmax(logit(bias=False), mask=mu[u, i, j]),
    ),
    values=says(
        "is b_v = U_v b_c through the values: O(b_c) = O(0) + 1 (U_v b_c)ᵀ",
        output(bias=True),
        "=",
        output(bias=False) + FROM,
    ),
    fold=says(
        "b_o' = b_o + W_o U_v b_c does the same without it",
        through(True, BO[f]),
        "=",
        through(False, BO[f] + over(u, over(a, W[f, u, a] * FROM))),
    ),
)
def a_bias_on_the_latent(claim) -> Iterator[Part]:
    yield equal("U_k (c_j + b_c) is U_k c_j + U_k b_c: a key bias, the same for every key (K1).", claim.keys)
    yield equal("U_v (c_j + b_c) is U_v c_j + U_v b_c: a value bias (V1),", claim.values)
    yield equal("which W_o passes on, summed over the heads (V2).", claim.fold)
    yield from needed(("P(0)", "P(b_c)"), weights, LATENT_KEYS)
    yield from needed(("output(0, b_o + W_o U_v b_c)", "output(b_c, b_o)"), folded, LATENT_VALUES)


# One dim, U_k = U_v = 1: b_c is b_k, and b_v. The cases of K1, and of V2 but for the sink's, which K1 has already.
LATENT_KEYS = KEY_CASES
LATENT_VALUES = {key: case for key, case in OUTPUT_CASES.items() if key != "no-sink"}
