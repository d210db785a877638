"""What all tests share: how their programs are compiled, and the functions that they can name.

Programs are compiled in a hurry, for most are asked what they compute, not how fast: XLA's own
passes stay as they are, most of LLVM's are left out, which takes half the time and gives slower
code. What one test compiled, another one loads, in this process and in those that tests start. The
functions that a test can name are markers: -m symlog, -m week1, -m "observe and week2".
"""

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import jax
import pytest

HURRY = "JAX_DISABLE_MOST_OPTIMIZATIONS"  # jax's setting, as processes that tests start read it

os.environ[HURRY] = "1"
jax.config.update(HURRY.lower(), True)
SHARED = tempfile.TemporaryDirectory()  # nothing of a test stays on this machine
for name, value in (("jax_compilation_cache_dir", SHARED.name),
                    ("jax_persistent_cache_min_compile_time_secs", 0.0)):
    kept = os.environ.setdefault(name.upper(), str(value))  # one that started these tests shares it
    jax.config.update(name, type(value)(kept))
POOL, BEGUN = ThreadPoolExecutor(1), {}


def pytest_collection_finish(session):
    """Processes that take long begin at once, one after the other, beside the tests.

    A module's `begin_X(folder, full)` is the beginning of its fixture X, and is called if a test
    that was chosen asks for that; `full` is the environment of processes that compile in full."""
    full = {name: value for name, value in os.environ.items() if name != HURRY}
    for item in [] if session.config.option.collectonly else session.items:
        for name in getattr(item, "fixturenames", ()):
            if hasattr(item.module, f"begin_{name}") and name not in BEGUN:
                folder = Path(SHARED.name) / name
                folder.mkdir()
                BEGUN[name] = POOL.submit(getattr(item.module, f"begin_{name}"), folder, full)


@pytest.fixture(scope="session")
def begun():
    """begun(X) is what begin_X gave."""
    return lambda name: BEGUN[name].result()


@pytest.fixture(autouse=True)
def _slow_tests_in_full(request, monkeypatch):
    """Slow tests measure what a user gets, and train for long."""
    if request.node.get_closest_marker("slow"):
        monkeypatch.delenv(HURRY)
        jax.config.update(HURRY.lower(), False)
        yield
        jax.config.update(HURRY.lower(), True)
    else:
        yield


# In a student's copy, where dreamer.py may hold anything: the weeks as they were handed out.
KEPT = Path(__file__).parent / "weeks.json"


def _weeks():
    """{function: week in which it is written, 0 where it is given}."""
    if KEPT.exists():
        return json.loads(KEPT.read_text(encoding="utf-8"))
    known = import_module("utils.course.catalogue").functions()
    return {name: one.week for name, one in known.items()}


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
