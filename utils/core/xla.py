"""How XLA compiles for the CPU. To be set before jax computes anything."""

import ctypes
import os
import sys
from importlib import metadata

from utils.core import versions

# The older of two code generators. Measured with jax 0.10.2, the training chunk of the default
# model: 15 instead of 24 s of CPU time to compile, 0.7 instead of 1.4 GB at the peak, but 21
# instead of 17 ms an update afterwards. It is solved sooner so.
LEAN = "--xla_cpu_use_fusion_emitters=false"
# LLVM's level 1 instead of 3: the same chunk compiles in 9.0 instead of 10.8 s (13.5 and 17.0 s of
# CPU time), the initial weights in less than half the time; an update takes as long as before.
QUICK = "--xla_backend_optimization_level=1"
# For what runs long in large arrays: the newer code generator makes vector instructions where the
# older does not (a loop that writes over its own input), of the full width. An update of size1m
# takes 300 instead of 370 ms on one core, for 8 s more of compiling (docs/speed.md).
THOROUGH = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_prefer_vector_width": 512}
LARGE = 100_000  # recurrent units of all states that one update dreams from
REMOVED = (0, 11)  # the jax whose XLA no longer knows the flag, and stops at flags unknown to it


def set_flags():
    """Ask XLA for devices, and to compile in less time and memory; what the user set wins."""
    flags = [f"--xla_force_host_platform_device_count={max(2, os.cpu_count() or 1)}"]
    flags += [QUICK] if _removed() else [QUICK, LEAN]
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()


def compile_in_full(function, program, *arguments):
    """A jitted function of a `program`, compiled for long use with the options that pay for it."""
    config = program.config
    units = config.replay.batch * config.replay.length * config.model.deter
    options = THOROUGH if units > LARGE and not _removed() else {}
    compiled = function.lower(program, *arguments).compile(options)
    _give_back()
    return compiled


def _give_back():
    """Hand the system what the compiler freed and glibc keeps, 100 to 190 MB of the default's."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):  # not in every libc of Linux
        libc.malloc_trim(0)


def _removed():
    return versions.numbers(metadata.version("jax")) >= REMOVED
