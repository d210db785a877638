"""The first moments of a process, before any other import: streams, Ctrl-C, Python and packages.

Written so that an old Python can run it.
"""

import os
import re
import signal
import sys

# Programs of this project on a command line: dreamer.py, or a command after `python -m`.
OWN = re.compile(r"(.*[/\\])?(dreamer4?\.py)|utils\.\w+")

OLDEST_PYTHON = (3, 11)
OLDEST = {"jax": (0, 10), "flax": (0, 12, 8), "optax": (0, 2, 8), "gymnax": (1, 0, 1)}


def begin():
    """Prepare the process; exits with status 2 and one line if Python or a package does not fit."""
    open_streams()
    if _is_own() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C ends the imports at once: some packages swallow an exception, or make it another.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    check()


def open_streams():
    """Open standard streams that the caller has closed as the null device

    The next file that is opened would take their place, and what is printed would end up in it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def heed_interrupts():
    """Let Ctrl-C raise KeyboardInterrupt again, for a command that ends in order by itself."""
    if _is_own() and signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_own():
    """Whether the process is a program of this project, not one that imports it."""
    return any(_own())


def _own():
    """The matches of OWN at the beginning of the command line, None where there is none."""
    return [OWN.match(word) for word in getattr(sys, "orig_argv", ())[1:3]]


def program():
    """How messages of this process begin: dreamer4.py where it is that one, else dreamer.py."""
    return next((found.group(2) for found in _own() if found and found.group(2)), "dreamer.py")


def check():
    """Exit with status 2 and one line if Python, a package or a setting of jax does not fit."""
    problem = python_problem(sys.version_info[:3]) or package_problem() or setting_problem()
    if problem:
        sys.stderr.write(program() + ": " + problem + "\n")
        sys.exit(2)


def announce():
    """Say on a terminal that the packages are being imported, which takes seconds."""
    if sys.stderr.isatty():
        sys.stderr.write("loading      " + " · ".join(sorted(OLDEST)) + " ...\n")


def python_problem(found):
    """One line if a version of Python is too old, else None."""
    if tuple(found[:2]) < OLDEST_PYTHON:
        return "Python %s or newer is needed, this is %s" % (dotted(OLDEST_PYTHON), dotted(found))
    return None


def package_problem():
    """One line for the first installed package that is too old or missing, else None."""
    from importlib import metadata  # not in the oldest Pythons

    for name, oldest in OLDEST.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            return "%s is not installed: pip install -r requirements.txt" % name
        if numbers(found) < oldest:
            return "%s %s or newer is needed, found %s: pip install -r requirements.txt" % (
                name, dotted(oldest), found)
    return None


def setting_problem():
    """One line if jax is told to compute with 64 bits, else None."""
    if os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "yes", "on", "t", "y"):
        return "JAX_ENABLE_X64 is set, but this program computes with 32 bits: unset it"
    return None


def numbers(version):
    """The leading numbers of a version: "0.10.2.dev1" gives (0, 10, 2)."""
    parts = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def dotted(version):
    """(3, 11) as "3.11"."""
    return ".".join(str(number) for number in version)
