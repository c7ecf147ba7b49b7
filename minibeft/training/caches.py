"""What oneDNN keeps of the shapes it has seen, cut short.

It multiplies in bfloat16, and compiles code for every number of rows, of which packed batches have hundreds; it keeps
1,024 of these programs, and torch the last 1,024 again: more memory than the training itself takes. To compile one
again costs less than timings scatter. Both numbers are read once, before the first product, from the environment.
"""

import os

CAPS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "16"}


def cap_caches() -> None:
    """For this process and those that it starts, before torch is imported; what the user has set stays."""
    for name, most in CAPS.items():
        os.environ.setdefault(name, most)
