"""Grades a submission: runs the tests of an assignment against its dreamer.py, task by task.

    python -m utils.grade DIR --week 3

Tests and all other files are those of this project. Each task runs in its own process and its own
copy. This protects the grades from mistakes, not the machine from malice: the students' code runs
with the grader's permissions.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from utils import handout
from utils.core import cli
from utils.core.config import ConfigError, nearest
from utils.course import catalogue
from utils.run import files

RESULTS = "results.json"
LONGEST = 200  # maximum characters of a test's message


class Case(NamedTuple):
    """One run of a test."""

    test: str
    case: str  # the text in brackets after its name, or ""
    message: str  # why it failed, "" if it passed


class Ran(NamedTuple):
    """The outcome of one call of pytest."""

    cases: list
    lost: str  # why there is no report, "" if there is one

    def fault(self):
        """The first error, "" if there was none."""
        return self.lost or next((case.message for case in self.cases if case.message), "")


class Grade(NamedTuple):
    """A task, its points, and one line per failure."""

    task: catalogue.Function
    points: float
    failed: list


def main(argv=None):
    """The command -> exit status: 0 for any grade, 2 for a wrong flag, 130 if stopped"""
    try:
        flags = _flags(argv)
        tasks = handout.chosen(flags, catalogue.functions())
        if not tasks:
            raise ConfigError(f"--week {flags.week}: has no automatic tests, it is marked by hand")
        _check(flags.submission)
        flags.results.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.grade")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began, grades = time.monotonic(), []
    print(f"{'task':24}{'points':>14}  what failed")
    try:
        for one in grade(flags.submission, tasks, flags.limit):
            grades.append(one)
            print(_row(one.task.name, one.points, one.task.points, one.failed), flush=True)
            # written after each task, so that an interruption keeps the grades so far
            rest = [Grade(task, 0.0, ["not reached"]) for task in tasks[len(grades):]]
            text = json.dumps(gradescope(grades + rest, time.monotonic() - began), indent=1,
                              ensure_ascii=False)
            files.replace(flags.results / RESULTS, (text + "\n").encode())
        most = sum(task.points for task in tasks)
        print(_row("total", sum(one.points for one in grades), most, []))
    except OSError as error:
        return cli.complain(error, "utils.grade")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"written      {flags.results / RESULTS}")
    return 0


def _check(folder):
    """Check that the folder exists; its content is graded, whatever it is.

    Raises: ConfigError."""
    if folder.is_file():
        raise ConfigError(f"{folder}: expected a folder, found a file")
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        raise ConfigError(f"{folder}: no such folder{nearest(folder.name, siblings)}")


def _missing(submission):
    """Why a folder has no submitted file, "" if it has one."""
    file = submission / catalogue.TASKS
    if file.is_symlink():
        return f"{catalogue.TASKS} is a link, expected a file"
    if file.is_dir():
        return f"{catalogue.TASKS} is a folder, expected a file"
    if file.is_file():
        return ""
    deeper = sorted(path.relative_to(submission).as_posix()
                    for path in submission.rglob(catalogue.TASKS))
    return f"{catalogue.TASKS} is missing{f', but {deeper[0]} is there' if deeper else ''}"


def grade(submission, tasks, limit):
    """Yields the Grade of each task; its tests may take `limit` seconds."""
    all_tests, wrong = catalogue.tests(catalogue.functions()), []
    with tempfile.TemporaryDirectory() as folder:
        whole, fault = Path(folder) / "whole", _missing(submission)
        handout.copy_project(whole)
        (whole / catalogue.TASKS).unlink()  # the solution
        if not fault:
            shutil.copyfile(submission / catalogue.TASKS, whole / catalogue.TASKS)
            everything = {test.path for test in all_tests}
            fault = run(whole, ["--collect-only", *sorted(everything)], limit).fault()
        for task in tasks:
            tests = catalogue.of(task, all_tests)
            files = sorted({test.path for test in tests})
            ran = Ran([], fault) if fault else run(whole, ["-m", task.marker, *files], limit)
            found = judged(task, tests, ran, wrong)
            if found.failed:
                wrong.append(task)
            yield found


def run(whole, arguments, limit):
    """Run pytest in a copy of a folder, in a process group killed after `limit` seconds."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        room, report = Path(folder) / "room", Path(folder) / "report.xml"
        shutil.copytree(whole, room)
        command = [sys.executable, "-m", "pytest", "--capture=no", "-p", "no:cacheprovider",
                   f"--junitxml={report}", *arguments]
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
        lost = f"exited with status {status} before all tests finished" if cases is None else ""
        return Ran(cases or [], lost)


def _end(process):
    """Kill a process and, where process groups exist, everything it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


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


def judged(task, tests, ran, wrong):
    """The Grade of a task whose tests `ran`; `wrong` are the tasks that failed before."""
    if ran.lost:
        return Grade(task, 0.0, [ran.lost])
    failed = []
    for test in tests:
        cases = [case for case in ran.cases if case.test == test.name]
        bad = [case for case in cases if case.message]
        if bad:
            which = f" ({bad[0].case})" if bad[0].case else ""
            failed.append(f"{test.sentence}{which}: {bad[0].message}")
        elif not cases:
            failed.append(f"{test.sentence}: did not run")
    points = round(task.points * (1 - len(failed) / len(tests)), 2)
    needs = catalogue.below(task, wrong)
    if failed and needs:
        failed.append(f"uses functions that failed above: {', '.join(needs)}")
    return Grade(task, points, failed)


def gradescope(grades, seconds):
    """The grades in the format of Gradescope's autograder."""
    return {
        "score": round(sum(one.points for one in grades), 2),
        "execution_time": round(seconds),
        "tests": [{
            "name": f"{one.task.name} ({one.task.title})" if one.task.number else one.task.name,
            "score": one.points, "max_score": one.task.points,
            "status": "failed" if one.failed else "passed",
            "output": "\n".join(one.failed), "visibility": "visible",
        } for one in grades]}


def _row(name, points, most, failed):
    """A line of the table, followed by one for each further failure."""
    first, *others = failed or [""]
    lines = [f"{name:24}{points:>6g} of {most:>4}  {first}".rstrip()]
    return "\n".join(lines + [" " * 40 + line for line in others])


def _flags(argv):
    parser = cli.Parser("python -m utils.grade", description=__doc__.splitlines()[0],
                        allow_abbrev=False)
    parser.add_argument("submission", metavar="DIR", type=Path,
                        help=f"folder of a submission; only its {catalogue.TASKS} counts")
    handout.add_flags(parser)
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=60.0,
                        help="time limit for the tests of one task (default: 60)")
    parser.add_argument("--results", metavar="DIR", type=Path, default=Path(),
                        help=f"folder of {RESULTS}, for Gradescope (default: the current one)")
    flags = parser.parse_args(argv)
    if not flags.limit > 0:
        parser.error(f"--limit: expected a number of seconds more than 0, found {flags.limit:g}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
