"""Command lines that the user can paste: with the interpreter and the folder as they are."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from utils.core.machine import ROOT


def train(program, *arguments):
    """The command that runs a program of the root, such as dreamer.py."""
    return _line([_python(), _short(ROOT / program), *arguments])


def tool(name, *arguments):
    """The command that runs `python -m utils.NAME`, from the current folder."""
    module = ["-m", f"utils.{name}", *arguments]
    if Path.cwd() == ROOT:
        return _line([_python(), *module])
    safe = ["-P"] if Path("utils").exists() else []  # else Python finds that one first
    command = _line([_python(), *safe, *module])
    if os.name == "nt":
        return f'set "PYTHONPATH={ROOT}" && {command}'
    return f"PYTHONPATH={shlex.quote(str(ROOT))} {command}"


def _python():
    """`python` where this is it, else the path of the interpreter."""
    found = shutil.which("python")
    if found and Path(found) == Path(sys.executable):
        return "python"
    return _short(sys.executable)


def _short(path):
    """A path below the current folder without it, another one in full."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _line(parts):
    return subprocess.list2cmdline(parts) if os.name == "nt" else shlex.join(parts)
