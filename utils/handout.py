"""Writes a copy of the project for students, without the solutions of some tasks.

    python -m utils.handout --week 3 --out DIR

A task is a function of dreamer.py that is listed in weeks.yaml. The copy contains the tests with
markers for functions, but not the tools for teachers.
"""

import json
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from utils.core import cli
from utils.core.config import ConfigError, nearest
from utils.course import catalogue

FILES = ("dreamer.py", "jaxmodels_nnx.py", "gymnax_wrappers.py", "dreamer.yaml",
         "requirements.txt", "pyproject.toml", "README.md", "LICENSE", ".gitignore", "docs",
         "utils")
# Of utils/: tools for teachers, and Dreamer 4, which does much as dreamer.py does it.
TEACHERS = ("equations.py", "handout.py", "grade.py", "mistakes.py", "course", "dreamer4")
# Of docs/: solutions, pages for teachers and those of Dreamer 4.
TELLING = ("mistakes.*", "teaching.md", "dreamer4.*", "differences4.md")
# {file: tasks that it repeats}: the file is replaced if one of them is to be written.
RETELLING = {
    "utils/explain.py": {"world_losses", "advantages", "imagination_losses", "replay_critic_loss",
                         "agent_losses"},
    "utils/pictures/rollouts.py": {"observe", "play"},
}
LEFT_OUT = '''"""Left out of this copy: it repeats functions to be written in dreamer.py."""

import sys

print(f"{__spec__.name}: left out of this copy, because it contains solutions", file=sys.stderr)
sys.exit(2)
'''
PAGES = ("README.md", "tests/golden/README.md", *(f"docs/{name}.md" for name in (
    "differences", "environments", "equations", "hosts", "imagination", "reading", "results",
    "running", "speed", "speed_trials", "stability")))
FOR_TEACHERS = re.compile(r"<!-- teachers -->.*?<!-- /teachers -->", re.DOTALL)  # of PAGES
COUNTED = re.compile(r"^\| `(\w+\.(?:py|yaml))` \| \d+ \|", re.MULTILINE)  # in README.md
ASSIGNMENT = "ASSIGNMENT.md"
# The end of dreamer.py, and that of a copy in which something is to be written.
START = """\
    GROUP.leave(main(began=STARTED))
"""
START_UNWRITTEN = """\
    try:
        GROUP.leave(main(began=STARTED))
    except NotImplementedError as error:
        import traceback

        if not str(error).endswith("see the docstring"):
            raise
        name = traceback.extract_tb(error.__traceback__)[-1].name
        sys.exit(cli.complain(ValueError(f"not written yet: {name}")))
"""

WEEKS = catalogue.weeks()


def main(argv=None):
    """The command: write the copy -> exit status: 0, or 2 for wrong flags or a wrong folder"""
    try:
        flags = _flags(argv)
        known = catalogue.functions()
        tasks = chosen(flags, known)
        # with --week also those of later weeks, so that no solution is revealed
        blank = tasks if flags.week is None else [
            one for one in known.values() if one.week >= flags.week]
        write(_empty(flags.out), tasks, blank, flags.week)
    except (ValueError, OSError) as error:
        return cli.complain(error, "utils.handout")
    what = (f"{len(tasks)} tasks, {sum(task.points for task in tasks)} points" if tasks
            else "no function to write")
    print(f"written      {flags.out}: {what}; start with {flags.out / ASSIGNMENT}")
    return 0


def add_flags(parser):
    """Add --week and --only, which select the assignment (default: all)."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--week", metavar="N", type=int, choices=WEEKS,
                       help="the tasks of a week, 1 to 6 (default: of all weeks)")
    which.add_argument("--only", metavar="NAME,NAME", help="only these tasks")


def chosen(flags, known):
    """The tasks of an assignment, by week and then in source order.

    Raises: ConfigError for a name that is not a task."""
    tasks = sorted((one for one in known.values() if one.week), key=lambda task: task.week)
    if flags.only is None:
        return [task for task in tasks if flags.week in (None, task.week)]
    names, only = [task.name for task in tasks], flags.only.replace(" ", "").split(",")
    for name in only:
        if name not in names:
            raise ConfigError(f"--only: {name!r} is not a task{nearest(name, names)}")
    return [task for task in tasks if task.name in only]


def _empty(folder):
    """Check that a folder is outside of the project and empty or new -> its path

    Raises: ConfigError."""
    path = folder.resolve()
    if path.is_relative_to(catalogue.ROOT):
        raise ConfigError(f"--out: {folder}: expected a folder outside of the project")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out: {folder}: expected a folder, found a file")
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"--out: {folder}: is not empty; nothing is overwritten")
    return path


def write(out, tasks, blank, week):
    """Write the copy without the solutions of `blank`, with the assignment, atomically."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        copy = Path(temporary) / "copy"
        copy_project(copy)
        for path in {task.path for task in blank}:
            text = (copy / path).read_text(encoding="utf-8")
            text = catalogue.blanked(text, [task for task in blank if task.path == path])
            text = text.replace(START, START_UNWRITTEN)
            (copy / path).write_text(text, encoding="utf-8")
        for path, retold in RETELLING.items():
            if retold & {task.name for task in blank}:
                (copy / path).write_text(LEFT_OUT, encoding="utf-8")
        for path in PAGES:
            text = (copy / path).read_text(encoding="utf-8")
            text = re.sub(r"\n{3,}", "\n\n", FOR_TEACHERS.sub("", text))
            text = COUNTED.sub(partial(_count, copy), catalogue.linked(text, copy))
            (copy / path).write_text(text, encoding="utf-8")
        text = assignment(tasks, catalogue.functions(copy), week)
        (copy / ASSIGNMENT).write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()
        copy.rename(out)


def _count(copy, match):
    """The same cell of a table, with the number of lines of the copy's file, rounded to tens."""
    lines = len((copy / match[1]).read_text(encoding="utf-8").splitlines())
    return f"| `{match[1]}` | {round(lines, -1)} |"


def copy_project(out):
    """Copy the files for students, with solutions; of the tests, only files with markers."""
    root, known = catalogue.ROOT, catalogue.functions()
    named = {Path(test.path).name for test in catalogue.tests(known)} | {"conftest.py", "pages.py"}
    others = {path.name for path in (root / "tests").glob("*.py")} - named
    out.mkdir()
    for name in FILES:
        source, ignored = root / name, shutil.ignore_patterns("__pycache__", *TELLING, *TEACHERS)
        if source.is_dir():
            shutil.copytree(source, out / name, ignore=ignored)
        else:
            shutil.copy(source, out / name)
    shutil.copytree(root / "tests", out / "tests",
                    ignore=shutil.ignore_patterns("__pycache__", *others))
    weeks = {name: one.week for name, one in known.items()}
    (out / "tests" / "weeks.json").write_text(json.dumps(weeks, indent=1), encoding="utf-8")


def assignment(tasks, copied, week):
    """The text of ASSIGNMENT.md; `copied` are the functions of the copy, with their lines."""
    weeks = [week] if week else sorted({task.week for task in tasks})
    all_tests = catalogue.tests(catalogue.functions())
    parts = ["# Assignment", _how_to(tasks, week)] if tasks else ["# Assignment"]
    for number in weeks:
        about = WEEKS[number]
        parts.append(f"## Week {number}: {about.title}\n\nRead {about.read}.")
        for task in tasks:
            if task.week == number:
                parts.append(_task(task, copied[task.name].line, tasks, all_tests))
        parts += [about.more] if about.more else []
    return "\n\n".join(parts) + "\n"


def _how_to(tasks, week):
    """The general instructions: how to write and check a task."""
    weeks = sorted({task.week for task in tasks})
    whole = len(tasks) == sum(one.week in weeks for one in catalogue.functions().values())
    marks = " or ".join([f"week{one}" for one in weeks] if whole else
                        [f"({task.marker})" for task in tasks])
    points = sum(task.points for task in tasks)
    rest = ("Functions of earlier weeks are complete, those of later weeks are not." if week
            else "All other functions are complete.")
    return f"""\
Write the bodies of these functions in `dreamer.py`: each now has only a line
`raise NotImplementedError(...)`. A task is worth one point per line of our solution; yours may be
longer or shorter. There are {points} points in total. The docstring of a function gives its result,
its shapes and its equation in the paper (arXiv 2301.04104v2). The docstring at the top of the file
explains notation, shapes and the time line.
{rest}

README.md and docs/ describe the complete project. Install it as described in README.md. Then

    python -m pytest -m "{marks}"

runs the tests of this assignment; each task below has its own command. The name of a test is the
property that it checks. Hand in `dreamer.py`: it is graded by these tests."""


def _task(task, line, tasks, all_tests):
    """The text of one task: description, place, prerequisites, tests."""
    number = f"Eq. {task.number}, " if task.number else ""
    needs = [f"`{name}`" for name in catalogue.below(task, tasks)]
    first = f" Uses {', '.join(needs)}." if needs else ""
    sentences = "\n".join(f"* {test.sentence}" for test in catalogue.of(task, all_tests))
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
                        help="folder of the copy: new or empty")
    add_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
