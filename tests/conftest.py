"""What all tests share: how their programs are compiled, and the functions that they can name.

Programs are compiled in a hurry, for most are asked what they compute, not how fast: XLA's own
passes stay as they are, most of LLVM's are left out, which takes half the time and gives slower
code. What one test compiled, another one loads, in this process and in all others. The functions
that a test can name are markers: -m symlog, -m week1, -m "observe and week2".
"""

import copy
import gc
import json
import os
import tempfile
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module, metadata
from pathlib import Path

import pytest

# Settings of jax, for this process, which imports it later, and for all that tests start.
HURRY = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ[HURRY] = "1"
# LLVM gets a program in one piece, not in one for each of many cores: a seventh less work. (A
# later jax may not know the flag, and would end.) Once alone: programs are found by their flags.
ONE_PIECE = "--xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jax").startswith("0.10.") and ONE_PIECE not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_PIECE}".strip()
# NumPy's large matrices: beside the tests of the other process, its threads keep the cores busy
# with waiting for each other, for up to ten times what one thread takes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
SHARED = tempfile.TemporaryDirectory()  # nothing of a test stays on this machine
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", SHARED.name)  # or that of who started these
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the options
def pytest_cmdline_main(config):
    """Who asks for all fast tests has them in two processes, each file in one of them."""
    option = config.option
    chosen = option.file_or_dir or option.keyword or option.markexpr != "not slow"
    alone = chosen or option.collectonly or option.usepdb or hasattr(config, "workerinput")
    if not alone and config.pluginmanager.hasplugin("xdist") and option.numprocesses is None:
        option.numprocesses, option.dist, option.loadscopereorder = 2, "loadfile", False


def pytest_sessionstart():
    """What tests use from the start: some read the numbers of the programs while imported."""
    with suppress(ModuleNotFoundError, AttributeError):  # another project, in tests of grades
        config = import_module("utils.core.config")
        config.parse = partial(_parsed, config.parse, {})


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not look for what is unused among it.

    It looked so often that this took a tenth of the time: tracing makes millions of objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _parsed(parse, known, source):
    """The values in YAML; the numbers of the programs, read a thousand times, are parsed once."""
    if isinstance(source, str):
        return parse(source)
    text = source.read()
    source.seek(0)
    if not text.startswith("# Every number of the program"):
        return parse(source)
    if text not in known:
        known[text] = parse(source)
    return copy.deepcopy(known[text])


@pytest.fixture(scope="session")
def full():
    """The environment of processes that compile in full, as those of a user do."""
    return {name: value.replace(ONE_PIECE, "") for name, value in os.environ.items()
            if name != HURRY}


@pytest.fixture(autouse=True)
def _slow_tests_in_full(request, monkeypatch):
    """Slow tests measure what a user gets, and train for long.

    Those with the marker `hurried` compare with what the fast tests have compiled."""
    is_marked = request.node.get_closest_marker
    if is_marked("slow") and not is_marked("hurried"):
        monkeypatch.delenv(HURRY)
        monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "").replace(ONE_PIECE, ""))
        with _in_full():
            yield
    else:
        yield


@pytest.fixture(scope="session")
def in_full():
    """in_full(): a block in which this process compiles as that of a user does."""
    return _in_full


@contextmanager
def _in_full():
    import jax  # not at the top: who grades starts many processes that do without

    jax.config.update(HURRY.lower(), False)
    try:
        yield
    finally:
        jax.config.update(HURRY.lower(), True)


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


# The files that take longest: they come first, so that neither process is left with one at the end.
LONGEST = ["test_session.py", "test_dreamer4_command.py", "test_hosts.py",
           "test_tiny_worlds.py", "test_gymnasium.py", "test_dreamer4.py", "test_program.py",
           "test_report.py", "test_seeds.py", "test_fleet.py", "test_fast_forms.py",
           "test_commands.py", "test_golden.py", "test_fuzz.py", "test_handout.py",
           "test_user_env.py", "test_explain.py", "test_gymnax_wrappers.py", "test_grade.py",
           "test_devices.py", "test_equations.py", "test_bench.py", "test_ablations.py",
           "test_suite.py", "test_drawings.py", "test_replay.py", "test_wiring.py",
           "test_bad_input.py", "test_machines.py", "test_studies.py"]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """A test belongs to the latest week of the functions that it names; long files come first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        names = {mark.name for mark in item.iter_markers()} & WEEKS.keys()
        if week := max((WEEKS[name] for name in names), default=0):
            item.add_marker(f"week{week}")
