"""Skips the module that imports it where triton is not installed; it is built for Linux alone."""

import pytest

pytest.importorskip("triton")
