"""Settings of jax before it compiles anything: cache on disk, precision of matrix products."""

import hashlib
import os
import sys
from pathlib import Path

import jax

from utils.core.machine import processor

# bfloat16: operands of products are rounded to bfloat16 and summed in float32, where the device
# supports it (GPU, TPU). A CPU computes in float32 regardless. Everything else is float32.
PRODUCTS = {"float32": None, "bfloat16": "BF16_BF16_F32"}


def set_up(config):
    """Configure jax for runs of `config`; a compilation cache that the user has set is kept."""
    jax.config.update("jax_default_matmul_precision", PRODUCTS[config.model.compute_dtype])
    folder = cache_folder()
    if config.run.compile_cache and folder and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Cache small programs too (by default jax does not): 30 of them cost 0.4 s at every start.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder():
    """The folder of compiled programs: in the user's cache folder, one per processor model

    (machines with different instruction sets may share a home folder). None for a user without a
    home folder."""
    name = hashlib.sha256(processor().encode()).hexdigest()[:8]
    try:
        return _users_cache() / "dreamer" / name
    except RuntimeError:
        return None


def _users_cache():
    """The user's cache folder, by the convention of the operating system."""
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
