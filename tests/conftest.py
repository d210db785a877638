"""What all tests share: how their programs are compiled, and the functions that they can name.

Programs are compiled in a hurry, for most are asked what they compute, not how fast: XLA's own
passes stay as they are, most of LLVM's are left out, which takes half the time and gives slower
code. What one test compiled, another one loads, in this process and in those that tests start. The
functions that a test can name are markers: -m symlog, -m week1, -m "observe and week2".
"""

import json
import os
import tempfile
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import jax
import pytest

HURRY = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # jax's setting, as processes that tests start read it

os.environ[HURRY] = "1"
jax.config.update(HURRY.lower(), True)
SHARED = tempfile.TemporaryDirectory()  # nothing of a test stays on this machine
for name, value in (("jax_compilation_cache_dir", SHARED.name),
                    ("jax_persistent_cache_min_compile_time_secs", 0.3)):
    kept = os.environ.setdefault(name.upper(), str(value))  # one that started these tests shares it
    jax.config.update(name, type(value)(kept))


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


# In a student's copy, where dreamer.py may hold anything: the weeks as they were handed out.
KEPT = Path(__file__).parent / "weeks.json"


def _weeks():
    """{function: week in which it is written, 0 where it is given}."""
    if KEPT.exists():
        return json.loads(KEPT.read_text(encoding="utf-8"))
    return {name: one.week for name, one in import_module("utils.equations").functions().items()}


WEEKS = _weeks()


def pytest_configure(config):
    """`--markers` lists them; with --strict-markers no other name is one."""
    for name, week in WEEKS.items():
        written = f", written in week {week}" if week else ""
        config.addinivalue_line("markers", f"{name}: holds this function to its docstring{written}")
    for week in sorted({*WEEKS.values()} - {0}):
        config.addinivalue_line("markers", f"week{week}: rests on nothing of a later week")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """A test belongs to the latest week of the functions that it names."""
    for item in items:
        names = {mark.name for mark in item.iter_markers()} & WEEKS.keys()
        if week := max((WEEKS[name] for name in names), default=0):
            item.add_marker(f"week{week}")
