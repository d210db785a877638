"""What jax is told before it compiles anything: its cache on disk, and the type of its products."""

import hashlib
import os
import sys
from pathlib import Path

import jax

from utils.core.machine import processor

# Both operands of a product rounded to bfloat16, sums in float32, where the device has units for
# that (GPU, TPU). A CPU computes in float32 all the same. Everything else is float32 anyway.
PRODUCTS = {"float32": None, "bfloat16": "BF16_BF16_F32"}


def set_up(config):
    """Set jax up for runs of `config`; a cache that the user has set for jax is left as it is."""
    jax.config.update("jax_default_matmul_precision", PRODUCTS[config.model.compute_dtype])
    if config.run.compile_cache and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        # Small programs too, which jax would not keep: 30 of them take 0.4 s of every start.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder():
    """Where compiled programs are kept: in the user's cache folder, one for each processor

    (a home folder may be shared by machines that do not run each other's instructions)."""
    name = hashlib.sha256(processor().encode()).hexdigest()[:8]
    return _users_cache() / "dreamer" / name


def _users_cache():
    """The folder that the system has for such files, by its usual rules."""
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
