"""Triton kernels that know the theory: plain tensors in, plain tensors out."""
