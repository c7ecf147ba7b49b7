"""Bias gradients as column sums; for the value bias without any attention backward (theorem V3)."""
