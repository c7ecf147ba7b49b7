"""Smaller caches for the code that oneDNN compiles.

oneDNN multiplies in bfloat16 and compiles code for every number of rows, of which packed batches have hundreds. It
keeps 1,024 of these programs, and torch the last 1,024 too: more memory than the training itself takes. Compiling one
again takes less time than timings vary. Both limits are read once from the environment, before the first product.
"""

import os

CAPS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "16"}


def cap_caches() -> None:
    """Set the limits for this process and those that it starts, before torch is imported; the user's values stay."""
    for name, most in CAPS.items():
        os.environ.setdefault(name, most)
