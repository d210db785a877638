"""Grades submissions: runs the tests of an assignment against their dreamer.py, task by task.

    python -m utils.grade DIR --week 3
    python -m utils.grade submissions/* --week 3 --csv grades.csv

Tests and all other files are those of this project. Each task runs in processes and a copy of its
own. Tests that must fail, and files that must not change, reveal simple attempts to tamper with the
tests. This protects the grades from mistakes, not from malice: the students' code runs with the
grader's permissions. Grade strangers in a container.
"""

import csv
import io
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from utils import handout
from utils.core import cli
from utils.core.config import ConfigError, nearest
from utils.course import catalogue, trial
from utils.run import files

RESULTS = "results.json"
CLASS = Path("results")  # of several submissions, a folder for each


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
        folders = _folders(flags)
        _prepare(folders.values(), tasks, flags.csv)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.grade")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _grade_all(folders, tasks, flags)
    except OSError as error:
        return cli.complain(error, "utils.grade")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _folders(flags):
    """{submission: the folder of its results}. The submissions exist; their content is graded.

    Raises: ConfigError."""
    several, names = len(flags.submissions) > 1, {}
    for folder in flags.submissions:
        _check(folder)
        name = folder.resolve().name
        if name in names:
            raise ConfigError(f"{folder}: has the same name as {names[name]}")
        names[name] = folder
    results = flags.results or (CLASS if several else Path())
    return {folder: results / name if several else results for name, folder in names.items()}


def _prepare(folders, tasks, table):
    """Make the folders of the results and an empty table; what fails leaves no folder."""
    made = files.make(*folders)
    try:
        if table:
            _check_file(table)
            _write_table(table, tasks, {})
    except (ValueError, OSError):
        files.unmake(made)
        raise


def _check(folder):
    """Check that the folder of a submission exists. Raises: ConfigError."""
    if folder.is_file():
        raise ConfigError(f"{folder}: expected a folder, found a file")
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        raise ConfigError(f"{folder}: no such folder{nearest(folder.name, siblings)}")


def _check_file(path):
    """Check that a file can be where this path leads. Raises: ConfigError."""
    if path.is_dir():
        raise ConfigError(f"--csv: {path}: expected a file, found a folder")
    if not path.parent.is_dir():
        raise ConfigError(f"--csv: {path}: no such folder")


def _grade_all(folders, tasks, flags):
    """Grade submissions, print a line for each, or for each task of a single one; write files."""
    several, table, most = len(folders) > 1, {}, sum(task.points for task in tasks)
    print(f"{'student' if several else 'task':24}{'points':>14}  what failed")
    for submission, folder in folders.items():
        grades = []
        for one in _saved(submission, tasks, flags.limit, folder / RESULTS):
            grades.append(one)
            if not several:
                print(_row(one.task.name, one.points, one.task.points, one.failed), flush=True)
        total, name = sum(one.points for one in grades), submission.resolve().name
        print(_row(name, total, most, _summary(grades)) if several else
              _row("total", total, most, []), flush=True)
        table[name] = grades
        if flags.csv:
            _write_table(flags.csv, tasks, table)
    first = next(iter(folders.values()))
    print(f"written      {first.parent / '*' / RESULTS if several else first / RESULTS}"
          f"{f', {flags.csv}' if flags.csv else ''}")


def _saved(submission, tasks, limit, path):
    """Yields the Grade of each task, and saves all of them so far: an interruption keeps them."""
    began, grades = time.monotonic(), []
    for one in grade(submission, tasks, limit):
        grades.append(one)
        rest = [Grade(task, 0.0, ["not reached"]) for task in tasks[len(grades):]]
        text = json.dumps(gradescope(grades + rest, time.monotonic() - began), indent=1,
                          ensure_ascii=False)
        files.replace(path, (text + "\n").encode())
        yield one


def _summary(grades):
    """In a list: the tasks that lost points, or the reason if all of them have the same."""
    failed = [one for one in grades if one.failed]
    reasons = {one.failed[0] for one in failed}
    if len(failed) == len(grades) and len(reasons) == 1:
        return [*reasons]
    return [", ".join(one.task.name for one in failed)] if failed else []


def _write_table(path, tasks, table):
    """Write {student: Grades} as CSV: name, total, most, and the points of each task."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["name", "total", "most", *(task.name for task in tasks)])
    for name, grades in table.items():
        points = [one.points for one in grades]
        most = sum(task.points for task in tasks)
        rows.writerow([name, *(f"{number:g}" for number in (sum(points), most, *points))])
    files.replace(path, text.getvalue().encode())


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
            fault = trial.collect(whole, sorted(everything), limit).fault()
        for task in tasks:
            tests = catalogue.of(task, all_tests)
            paths = sorted({test.path for test in tests})
            ran = trial.Ran([], fault) if fault else trial.test(whole, task, paths, limit)
            found = judged(task, tests, ran, wrong)
            if found.failed:
                wrong.append(task)
            yield found


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
    parser.add_argument("submissions", metavar="DIR", type=Path, nargs="+",
                        help=f"folder of a submission; only its {catalogue.TASKS} counts")
    handout.add_flags(parser)
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=60.0,
                        help="time limit for the tests of one task (default: 60)")
    parser.add_argument("--results", metavar="DIR", type=Path,
                        help=f"folder of {RESULTS}, for Gradescope (default: the current one); of "
                        f"several submissions DIR/NAME (default: {CLASS}/NAME)")
    parser.add_argument("--csv", metavar="FILE", type=Path,
                        help="also write a table with a row for each submission")
    flags = parser.parse_args(argv)
    if not flags.limit > 0:
        parser.error(f"--limit: expected a number of seconds more than 0, found {flags.limit:g}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
