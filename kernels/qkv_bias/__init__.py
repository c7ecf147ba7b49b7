"""The three projections of attention with their biases in one pass."""
