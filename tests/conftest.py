"""Hypothesis profiles, one thread a test process (or OMP_NUM_THREADS), kernels without a GPU, and shape annotations
checked: in the suite every call into minibeft is held to what its signature says."""

import gc
import os

import torch
from hypothesis import HealthCheck, settings
from typecheck import install

SLOW = [HealthCheck.too_slow]
settings.register_profile("dev", max_examples=30, deadline=None, suppress_health_check=SLOW)
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=SLOW, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which no test module does before this

# Before any test module imports minibeft. Triton reads its kernels' source, so they are left alone.
ROOMS = "theory models families checkpoints show certificate verification surgery training reproduce benchmarks".split()
install([f"minibeft.{room}" for room in ROOMS])


def pytest_collection_finish() -> None:
    """What is imported stays: not to be looked through at each collection of garbage, nor copied in each fork."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
