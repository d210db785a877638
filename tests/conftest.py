"""Programs of tests are compiled in a hurry, for most are asked what they compute, not how fast.

XLA's own passes stay as they are, most of LLVM's are left out: half the time, slower code.
"""

import os
from contextlib import contextmanager

import jax
import pytest

HURRY = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # jax's setting, as processes that tests start read it

os.environ[HURRY] = "1"
jax.config.update(HURRY.lower(), True)


@contextmanager
def _in_full():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(HURRY)
        jax.config.update(HURRY.lower(), False)
        yield
        jax.config.update(HURRY.lower(), True)


@pytest.fixture(scope="session")
def in_full():
    """A context in which programs are compiled as a user's, in this process and in others."""
    return _in_full


@pytest.fixture(autouse=True)
def _slow_tests_in_full(request):
    """Slow tests measure what a user gets, and train for long."""
    if request.node.get_closest_marker("slow"):
        with _in_full():
            yield
    else:
        yield
