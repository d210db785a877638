"""What measured figures depend on beside the program."""

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def machine():
    """Date, processor and versions, of the project too."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpus": _cores(), "model": processor()},
        "versions": {"python": platform.python_version(), "commit": _commit()}
        | {name: metadata.version(name) for name in ("jax", "flax", "gymnax")},
    }


def _cores():
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor():
    """The name of the processor's model, "unknown" where the system does not tell."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    return (re.findall(r"model name\s*: (.+)", text) or [platform.processor() or "unknown"])[0]


def _commit():
    """The commit that is checked out, "unknown" outside a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                               capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
