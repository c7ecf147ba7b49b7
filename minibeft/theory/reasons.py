"""Why each verdict is what it is, one clause a broken hypothesis. The keys are those of theorems.HYPOTHESES."""

SHIFT = {
    "k": "b_k adds the same number to every logit of a row, and a softmax ignores what its row shares",
    "v": "the weights of a row sum to one, so b_v shifts every output by the same vector, which b_o can carry",
    "q": "b_q adds one number a key, the same for every query: a row of P moves by at most tanh(osc/4)",
}
KEY = {
    "unrotated": "rotary positions turn k after its bias, so q_i·R_{j−i} b_k depends on the distance to the key",
    "no-relative-vectors": "relative-position vectors multiply k, so b_k·E_{i−j} depends on the distance to the key",
    "no-qk-norm": "k is normalised after its bias, which rescales each key differently",
    "no-softcap": "soft-capping bends the logits, so a shift of the row changes their differences",
    "softmax": "the weights are no softmax, so they feel what a row's logits share",
    "no-sink": "the sink competes with the keys and does not carry b_k",
    "no-foreign-keys": "keys that no projection made (prefix, bias_kv, zero) compete and do not carry b_k",
}
VALUE = {
    "no-sink": "not foldable: a sink takes mass m_i from row i, so the shift is (1 − m_i) b_v, another for each token",
    "rows-sum-to-one": "not as it is: the weights of a row do not sum to one, so the shift is their sum times b_v",
    "raw-values": "not foldable: values are normalised after their bias",
    "ungated": "not foldable: a gate multiplies the output, and b_v with it",
    "no-foreign-values": "not foldable: foreign values (prefix, bias_kv, zero) take mass and do not carry b_v",
    "raw-output": "not foldable: a norm stands between the heads' outputs and W_o",
}
QUERY = {
    "unrotated": "rotary positions turn q after its bias, so its shift of the logits depends on i − j",
    "no-relative-vectors": "relative-position vectors multiply q, so its shift of the logits depends on i − j",
    "no-qk-norm": "q is normalised after its bias, so the shift of the logits depends on the query",
    "no-softcap": "soft-capping bends the logits, so the shift depends on where they were",
    "softmax": "the weights are no softmax, so b_q can change how much a row attends in all",
}
