"""Compiler options of XLA for the CPU, set before jax computes anything."""

import ctypes
import logging
import os
import sys
from importlib import metadata, util

from utils.core import start

# The older of two code generators. Measured with jax 0.10.2 on the training chunk of the default
# model: 15 instead of 24 s of CPU time to compile and 0.7 instead of 1.4 GB at the peak, but 21
# instead of 17 ms per update. CartPole is solved sooner this way.
LEAN = "--xla_cpu_use_fusion_emitters=false"
# LLVM's level 1 instead of 3: the same chunk compiles in 9.0 instead of 10.8 s (13.5 and 17.0 s of
# CPU time), the initial weights in less than half the time; updates take the same time. A GPU's
# compiler reads this flag too, so it is set only where there is no GPU.
QUICK = "--xla_backend_optimization_level=1"
# For long runs of large models: the newer code generator emits full-width vector instructions where
# the older one does not (in a loop that overwrites its own input). An update of size1m takes 300
# instead of 370 ms on one core, for 8 s more of compilation (docs/speed.md).
THOROUGH = {"xla_cpu_use_fusion_emitters": True, "xla_cpu_prefer_vector_width": 512}
LARGE = 100_000  # recurrent units of all states from which one update imagines
# What logs the traceback of a callback that fails: the program says it in one line.
TRACEBACKS = ("jax._src.callback", "jax._src.debugging")
# From this jax on, XLA no longer knows LEAN, and aborts on unknown flags. The older generator is
# still there under another name and takes 0.6 GB less, but an update then costs more, the more the
# larger the replay: 34 instead of 21 ms of CPU time (docs/speed.md, Memory with jax 0.11).
REMOVED = (0, 11)


def start_jax():
    """Set the number of CPU devices and cheaper compilation, and start jax

    Flags that the user has set win. Exits with status 2 and one line if there is no such device."""
    _set_flags()
    for name in TRACEBACKS:
        logging.getLogger(name).disabled = True
    import jax  # reads the flags

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion where it is the only platform
        wanted = os.environ.get("JAX_PLATFORMS")
        line = " ".join(str(error).split())[:120] or f"there is none for JAX_PLATFORMS={wanted}"
        sys.stderr.write(f"{start.program()}: jax finds no device: {line}\n")
        sys.exit(2)


def _set_flags():
    flags = [f"--xla_force_host_platform_device_count={max(2, os.cpu_count() or 1)}"]
    flags += [QUICK] if _only_a_cpu() else []
    flags += [] if _removed() else [LEAN]
    given = os.environ.get("XLA_FLAGS", "").split()
    # Once each: a program that this one starts inherits them, and its programs are found in the
    # compile cache by their flags.
    os.environ["XLA_FLAGS"] = " ".join([*(flag for flag in flags if flag not in given), *given])


def _only_a_cpu():
    """Whether jax can find nothing but CPUs: it is told so, or no plugin for another device is here

    (jax itself cannot be asked yet, because it reads the flags when it looks)."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if wanted:
        return wanted == "cpu"
    found = metadata.entry_points(group="jax_plugins") or util.find_spec("jax_plugins")
    return not (found or util.find_spec("libtpu"))


def compile_in_full(function, program, *arguments):
    """Compile a jitted function of a `program`, with the options that pay off for its size."""
    config = program.config
    units = config.replay.batch * config.replay.length * config.model.deter
    options = THOROUGH if units > LARGE and not _removed() else {}
    compiled = function.lower(program, *arguments).compile(options)
    _give_back()
    return compiled


def forget():
    """Drop the compiled programs of a run: else each run in one process keeps 200 MB of its own."""
    import jax

    jax.clear_caches()


def _give_back():
    """Return memory that the compiler freed to the system: 100 to 190 MB for the default model."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):  # not in every libc of Linux
        libc.malloc_trim(0)


def _removed():
    return start.numbers(metadata.version("jax")) >= REMOVED
