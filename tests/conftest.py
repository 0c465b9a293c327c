"""Strict settings for the whole suite."""

import os
import sys

from hypothesis import settings

pytest_plugins = ["pytester"]

# The arrays here are small: threads cost more than they bring, many times more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An array of shape (3,) that meets one of shape (2, 3) is a mistake until somebody says otherwise.
# JAX reads the variable when it is imported, so that this file need not import it.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
