"""Triton kernels that know the theory: plain tensors in, plain tensors out.

One folder per operator: reference.py (plain torch, the ground truth), the kernels, and function.py (the operator as
torch sees it). Nothing here imports a model, and nothing imports triton before a kernel is launched.
"""
