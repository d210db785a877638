"""Settings of jax before it compiles anything: the cache of compiled programs on disk."""

import hashlib
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path

import jax

from utils.core.machine import processor

# A warning of jax.
DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '(\w+)'")


def set_up(config):
    """Configure jax for runs of `config`; a compilation cache that the user has set is kept."""
    folder = cache_folder()
    if config.run.compile_cache and folder and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Cache small programs too (by default jax does not): 30 of them cost 0.4 s at every start.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        _replace_damaged(folder)


def _replace_damaged(folder):
    """Delete programs of the cache that jax cannot read, because a write was cut short

    jax only warns of them: it would never write them again, and compile at every start."""
    warnings.showwarning = partial(_look_for_damage, folder, warnings.showwarning)


def _look_for_damage(folder, show, message, *place):
    found = DAMAGED.match(str(message))
    for path in folder.glob(f"{found[1]}-*") if found else ():
        path.unlink(missing_ok=True)
    if not found:
        show(message, *place)


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
