"""A call of pytest on a copy of the project that holds a submission, in processes of its own.

A submission can break its own tests only: it has a copy of its own and a time limit, it must leave
the files of the copy as they are, and tests that must fail have to fail. None of this stops code
that means harm: it runs with the grader's permissions.
"""

import filecmp
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from utils.course import catalogue

LONGEST = 200  # maximum characters of a test's message
TAMPERED = "the tests were tampered with"
# Tests that fail unless pytest or what tests compare with was changed. They run last.
MUST_FAIL = '''"""Tests that must fail."""
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytestmark = pytest.mark.{marker}


def test_{code}_false():
    assert False


def test_{code}_close():
    assert_allclose(0.0, 1.0)


def test_{code}_equal():
    assert_array_equal([0.0], [1.0])


def test_{code}_raised():
    with pytest.raises(ValueError):
        pass
'''
# A process between the grader and pytest: a submission that kills its parent kills this one.
BETWEEN = """import subprocess, sys
status = subprocess.call(sys.argv[1:])
sys.exit(status if status >= 0 else 128 - status)
"""


class Case(NamedTuple):
    """One run of a test."""

    test: str
    case: str  # the text in brackets after its name, or ""
    message: str  # why it failed, "" if it passed


class Ran(NamedTuple):
    """The outcome of one call of pytest."""

    cases: list
    lost: str  # why its cases do not count, "" if they do

    def fault(self):
        """The first error, "" if there was none."""
        return self.lost or next((case.message for case in self.cases if case.message), "")


def collect(whole, paths, limit):
    """Import the tests in a copy of the folder `whole`, and with them the submission: -> Ran"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return _run(whole, Path(folder), ["--collect-only", *paths], limit)


def test(whole, task, paths, limit):
    """Run the tests of a task, and those that must fail, in a copy of the folder `whole`: -> Ran"""
    code = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        last = Path(folder) / "room" / "tests" / f"test_{code}.py"
        last.parent.mkdir(parents=True)
        last.write_text(MUST_FAIL.format(marker=task.name, code=code), encoding="utf-8")
        selected = ["-m", task.marker, *paths, f"tests/{last.name}"]
        ran = _run(whole, Path(folder), selected, limit)
    must_fail = [case for case in ran.cases if code in case.test]
    cases = [case for case in ran.cases if code not in case.test]
    lost = ran.lost
    if not lost and not all(case.message for case in must_fail):
        lost = f"{TAMPERED}: a test that must fail passed"
    if not lost and len(must_fail) < MUST_FAIL.count("def test_"):
        lost = "the tests were stopped before all of them finished"
    return Ran(cases, lost)


def _run(whole, folder, arguments, limit):
    """Run pytest in the copy folder/room, for at most `limit` seconds: -> Ran"""
    room, report = folder / "room", folder / "report.xml"
    shutil.copytree(whole, room, dirs_exist_ok=True)
    command = [sys.executable, "-I", "-c", BETWEEN, sys.executable, "-m", "pytest", "--capture=no",
               "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    own = {name: value for name, value in os.environ.items()
           if name not in ("PYTEST_ADDOPTS", "PYTHONPATH")}
    process = subprocess.Popen(
        command, cwd=room, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=own | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1",
                   "JAX_TRACEBACK_FILTERING": "off"})  # else jax adds a note to tracebacks
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return Ran([], f"no result within {limit:g} s")
    finally:
        _end(process)
    cases = _cases(report)
    if cases is None:
        status = status if status >= 0 else 128 - status
        return Ran([], f"exited with status {status} before all tests finished")
    changed = _changed(whole, room)
    return Ran(cases, f"{TAMPERED}: {changed} was changed" if changed else "")


def _end(process):
    """Kill a process and, where process groups exist, everything it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


def _changed(whole, room):
    """The first file of `whole` that is not the same in its copy, "" if all are."""
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        name = path.relative_to(whole)
        try:
            same = filecmp.cmp(path, room / name, shallow=False)
        except OSError:  # it is gone, or cannot be read
            same = False
        if not same:
            return name.as_posix()
    return ""


def _cases(report):
    """[Case] of a report in JUnit's format, None if it cannot be read."""
    try:
        found = ElementTree.parse(report).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    cases = []
    for one in found.iter("testcase"):
        problem = next((part for part in one if part.tag in ("failure", "error", "skipped")), None)
        name, _, case = one.get("name", "").partition("[")
        message = "" if problem is None else _message(problem)
        cases.append(Case(name, case.removesuffix("]"), message))
    return cases


def _message(problem):
    """The failure in one line: the message, or the error of an import and its line."""
    text = problem.get("message") or ""
    if text in ("collection failure", "internal error"):
        lines = (problem.text or text).splitlines()
        text = lines[-1].removeprefix("E ")  # pytest's prefix of errors
        if places := re.findall(rf'{re.escape(catalogue.TASKS)}(?:", line |:)(\d+)', problem.text):
            text += f" ({catalogue.TASKS}, line {places[-1]})"
    line = " ".join(text.split()) or "failed"
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."
