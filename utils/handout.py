"""Writes a student's copy of the project: the solutions of some tasks taken out, and what to do.

    python -m utils.handout --week 3 --out DIR

A task is a function of dreamer.py that weeks.yaml names.
The copy holds the tests that name functions, and neither this tool nor the one that grades.
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from utils.core import cli
from utils.core.config import ConfigError, nearest
from utils.course import catalogue

FILES = ("dreamer.py", "jaxmodels_nnx.py", "gymnax_wrappers.py", "dreamer.yaml",
         "requirements.txt", "pyproject.toml", "README.md", "LICENSE", ".gitignore", "docs",
         "utils")
TEACHERS = ("equations.py", "handout.py", "grade.py", "mistakes.py", "course")  # of utils/
TELLING = "mistakes.md"  # of docs/: it shows the lines that are changed
# {file: tasks that it goes through again}: its place is taken where one of them is to be written.
RETELLING = {
    "utils/explain.py": {"world_losses", "advantages", "dream_losses", "replay_critic_loss",
                         "agent_losses"},
    "utils/pictures/rollouts.py": {"observe", "play"},
}
LEFT_OUT = '''"""Left out of this copy: it goes through what is to be written in dreamer.py."""

import sys

print(f"{__spec__.name}: left out of this copy, it tells what is to be written", file=sys.stderr)
sys.exit(2)
'''
PAGES = ("README.md", "docs/reading.md")
FOR_TEACHERS = re.compile(r"<!-- teachers -->.*?<!-- /teachers -->", re.DOTALL)  # of PAGES
ASSIGNMENT = "ASSIGNMENT.md"


WEEKS = catalogue.weeks()


def main(argv=None):
    """The command: write the copy -> exit status, 2 where the flags or the folder will not do"""
    try:
        flags = _flags(argv)
        known = catalogue.functions()
        tasks = chosen(flags, known)
        # of --week the later ones too: a solution told is no task any more
        blank = tasks if flags.week is None else [
            one for one in known.values() if one.week >= flags.week]
        write(_empty(flags.out), tasks, blank, flags.week)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.handout")
    what = (f"{len(tasks)} tasks, {sum(task.points for task in tasks)} points" if tasks
            else "no function is missing")
    print(f"written      {flags.out}: {what}; begin with {flags.out / ASSIGNMENT}")
    return 0


def add_flags(parser):
    """--week and --only, which say what the assignment is; without them it is the whole course."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--week", metavar="N", type=int, choices=WEEKS,
                       help="the tasks of a week, 1 to 6 (default: of all weeks)")
    which.add_argument("--only", metavar="NAME,NAME", help="these tasks alone")


def chosen(flags, known):
    """The tasks of an assignment, in the order of the weeks and then of the source.

    Raises: ConfigError for a name that is no task."""
    tasks = sorted((one for one in known.values() if one.week), key=lambda task: task.week)
    if flags.only is None:
        return [task for task in tasks if flags.week in (None, task.week)]
    names, only = [task.name for task in tasks], flags.only.replace(" ", "").split(",")
    for name in only:
        if name not in names:
            raise ConfigError(f"--only: {name!r} is no task{nearest(name, names)}")
    return [task for task in tasks if task.name in only]


def _empty(folder):
    """The path of a folder, checked to be outside of the project and empty, or not there yet.

    Raises: ConfigError."""
    path = folder.resolve()
    if path.is_relative_to(catalogue.ROOT):
        raise ConfigError(f"--out: {folder}: expected a folder outside of the project")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out: {folder}: expected a folder, found a file")
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"--out: {folder}: is not empty, and nothing is overwritten")
    return path


def write(out, tasks, blank, week):
    """The copy without the solutions of `blank`, and the assignment of `tasks`, all or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:
        copy = Path(beside) / "copy"
        copy_project(copy)
        for path in {task.path for task in blank}:
            text = (copy / path).read_text(encoding="utf-8")
            text = catalogue.blanked(text, [task for task in blank if task.path == path])
            (copy / path).write_text(text, encoding="utf-8")
        for path, retold in RETELLING.items():
            if retold & {task.name for task in blank}:
                (copy / path).write_text(LEFT_OUT, encoding="utf-8")
        for path in PAGES:
            text = (copy / path).read_text(encoding="utf-8")
            text = re.sub(r"\n{3,}", "\n\n", FOR_TEACHERS.sub("", text))
            (copy / path).write_text(catalogue.linked(text, copy), encoding="utf-8")
        text = assignment(tasks, catalogue.functions(copy), week)
        (copy / ASSIGNMENT).write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()
        copy.rename(out)


def copy_project(out):
    """What students get, solutions included: of the tests, the files that name functions."""
    root, known = catalogue.ROOT, catalogue.functions()
    named = {Path(test.path).name for test in catalogue.tests(known)} | {"conftest.py"}
    others = {path.name for path in (root / "tests").glob("*.py")} - named
    out.mkdir()
    for name in FILES:
        source, ignored = root / name, shutil.ignore_patterns("__pycache__", TELLING, *TEACHERS)
        if source.is_dir():
            shutil.copytree(source, out / name, ignore=ignored)
        else:
            shutil.copy(source, out / name)
    shutil.copytree(root / "tests", out / "tests",
                    ignore=shutil.ignore_patterns("__pycache__", *others))
    weeks = {name: one.week for name, one in known.items()}
    (out / "tests" / "weeks.json").write_text(json.dumps(weeks, indent=1), encoding="utf-8")


def assignment(tasks, copied, week):
    """The text of ASSIGNMENT.md; `copied` are the functions as they stand in the copy."""
    weeks = [week] if week else sorted({task.week for task in tasks})
    held = catalogue.tests(catalogue.functions())
    parts = ["# Assignment", _how_to(tasks, week)] if tasks else ["# Assignment"]
    for week in weeks:
        about = WEEKS[week]
        parts.append(f"## Week {week}: {about.title}\n\nRead {about.read}.")
        for task in tasks:
            if task.week == week:
                parts.append(_task(task, copied[task.name].line, tasks, held))
        parts += [about.more] if about.more else []
    return "\n\n".join(parts) + "\n"


def _how_to(tasks, week):
    """What is to be done with any task, and how to check it."""
    weeks = sorted({task.week for task in tasks})
    whole = len(tasks) == sum(one.week in weeks for one in catalogue.functions().values())
    marks = " or ".join([f"week{one}" for one in weeks] if whole else
                        [f"({task.marker})" for task in tasks])
    points = sum(task.points for task in tasks)
    rest = ("Those of the weeks before are written, those of later weeks are not." if week
            else "All others are written.")
    return f"""\
These functions of `dreamer.py` have no body, only a line `raise NotImplementedError(...)`: put
their bodies in its place. A task is worth a point for each line of our solution, yours may be
longer or shorter: {points} points in all. The docstring says what a function gives, in which
shapes, and where the paper (arXiv 2301.04104v2) has it; the docstring at the top of the file has
notation, shapes and the time line.
{rest}

README.md and docs/ tell of the whole project, with nothing left to write. Install as README.md
says. Then

    python -m pytest -m "{marks}"

runs the tests of this assignment, and each task below has a command of its own. The name of a test
is the property that it holds. Hand in `dreamer.py`: it is graded by these tests."""


def _task(task, line, tasks, held):
    """One function: what it is, where it stands, what it builds on, how it is checked."""
    number = f"Eq. {task.number}, " if task.number else ""
    needs = [f"`{name}`" for name in catalogue.below(task, tasks)]
    first = f" Builds on {', '.join(needs)}." if needs else ""
    sentences = "\n".join(f"* {test.sentence}" for test in catalogue.of(task, held))
    return f"""\
### `{task.name}`: {number}{task.points} {"point" if task.points == 1 else "points"}

{task.what}

`{task.path}`, line {line}.{first}

    python -m pytest -m "{task.marker}"

{sentences}"""


def _flags(argv):
    parser = cli.Parser("python -m utils.handout", description=__doc__.splitlines()[0],
                        allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True,
                        help="folder of the copy: an empty one, or one that is not there yet")
    add_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
