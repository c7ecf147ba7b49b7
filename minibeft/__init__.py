"""What the attention biases b_q, b_k and b_v of a transformer do: proved, tested, accelerated and measured."""
