"""The machine, versions and date that measured figures depend on."""

import datetime
import hashlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def machine():
    """Date, processor and versions, including the commit of this project."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpus": _cores(), "model": processor()},
        "versions": {"python": platform.python_version(), "commit": _commit()}
        | {name: metadata.version(name) for name in ("jax", "flax", "gymnax")},
    }


def code():
    """A digest of the code of this project, without its tests."""
    paths = sorted([*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def _cores():
    """The number of cores that this process may use, where the system reports it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor():
    """The processor model, "unknown" where the system does not report it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    return (re.findall(r"model name\s*: (.+)", text) or [platform.processor() or "unknown"])[0]


def _commit():
    """The current commit, "unknown" outside a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                               capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
