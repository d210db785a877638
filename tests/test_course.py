"""Equations, tasks and tests belong together as the table, the assignments and the grades say."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dreamer
from tests import pages
from utils import equations, handout
from utils.course import catalogue

ROOT = Path(__file__).parent.parent
KNOWN = catalogue.functions()
HELD = catalogue.tests(KNOWN)
TASKS = [function for function in KNOWN.values() if function.week]
METHODS = {task.name for task in TASKS} - {*vars(dreamer)}
ALL_WEEKS = " or ".join(f"week{week}" for week in sorted({task.week for task in TASKS}))


def test_the_table_of_the_equations_is_made_from_the_docstrings():
    assert pages.block("equations") == equations.table()


def test_every_equation_of_the_paper_is_in_the_table():
    numbers = {n for one in KNOWN.values() for n in re.findall(r"\d+", one.number)}
    assert numbers == {str(n) for n in range(1, 12)}


def untested(held):
    """Equations that no test names, and tasks without a test that rests on no later week."""
    named = {name for test in held for name in test.names}
    return ([one.name for one in KNOWN.values() if one.number and one.name not in named]
            + [task.name for task in TASKS if not catalogue.of(task, held)])


def test_every_equation_and_every_task_has_a_test():
    assert untested(HELD) == []
    without = [test for test in HELD if not {"Actor", "kl"} & {*test.names}]
    assert untested(without) == ["Actor", "kl"]  # that this would be seen


def test_a_file_of_tests_names_a_function_in_each_of_them_or_in_none():
    named = {(test.path, test.name) for test in HELD}
    for path in {path for path, _ in named}:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = {(path, node.name) for node in tree.body
                 if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
        assert tests - named == set(), "name no function, by a marker"


def test_every_recorded_file_is_read_by_a_test_that_names_what_it_holds():
    files = {path.stem for path in (ROOT / "tests" / "golden").glob("*.npz")}
    assert files - {name for test in HELD for name in test.recorded} == set()


def test_a_marker_that_names_no_function_is_an_error(tmp_path):
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.lamda_returns\n"
                                         "def test_it():\n    pass\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
         "-p", "no:cacheprovider", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "'lamda_returns' not found in `markers`" in done.stdout


def test_every_week_but_the_last_has_tasks_and_nothing_builds_on_a_later_week():
    assert {task.week for task in TASKS} == handout.WEEKS.keys() - {max(handout.WEEKS)}
    later = [(task.name, name) for task in TASKS for name in task.calls
             if KNOWN[name].week > task.week]
    assert later == []


# ---- What a test rests on ------------------------------------------------------------------------
#
# By reading the tests: what they mention. By running them: the slow group notes what each one uses.


def built_on(names):
    """These functions and all that they build on."""
    return {below for name in names for below in {name} | KNOWN[name].calls}


def called(function):
    """The tasks that the body of a test uses itself: `dreamer.f`, or a method `x.f`."""
    nodes = [node for part in function.body for node in ast.walk(part)
             if isinstance(node, ast.Attribute)]
    return {task.name for task in TASKS} & {
        node.attr for node in nodes
        if node.attr in METHODS or getattr(node.value, "id", None) == "dreamer"}


def mentioned(part):
    """The functions that a part of a file of tests mentions in whatever way, but for markers."""
    words = set()
    for node in ast.walk(part):
        if isinstance(node, ast.Attribute) and getattr(node.value, "attr", None) != "mark":
            words.add(node.attr)
        elif isinstance(node, ast.Constant):
            words.add(node.value)
    return words & KNOWN.keys()


def at_hand(tree, test):
    """A test and all parts of its file that it may use, {name: part}."""
    parts = {name: part for part in tree.body for name in bound(part)}
    seen, ahead = {}, [test]
    while ahead:
        name = ahead.pop()
        if name in parts and name not in seen:
            seen[name] = parts[name]
            ahead += [getattr(node, "id", getattr(node, "arg", None))
                      for node in ast.walk(parts[name])]
    return seen


def bound(part):
    """The names that a statement of a module binds."""
    names = [node.id for node in ast.walk(part) if isinstance(node, ast.Name)
             and isinstance(node.ctx, ast.Store)]
    return [part.name] if isinstance(part, (ast.FunctionDef, ast.ClassDef)) else names


def misnamed(tree, test, names):
    """Tasks that a test names and cannot reach, and tasks that it calls and does not name."""
    parts = at_hand(tree, test)
    reached = built_on({name for part in parts.values() for name in mentioned(part)})
    return ({name for name in names if KNOWN[name].week} - reached,
            called(parts[test]) - built_on(names))


def test_a_test_reaches_every_task_that_it_names_and_calls_none_that_it_does_not_name():
    trees = {test.path: ast.parse((ROOT / test.path).read_text(encoding="utf-8")) for test in HELD}
    found = {test.name: misnamed(trees[test.path], test.name, test.names)
             for test in HELD if test.week}
    assert {test: wrong for test, wrong in found.items() if wrong != (set(), set())} == {}


def test_a_name_too_many_and_one_too_few_would_be_seen():
    tree = ast.parse("def help(): dreamer.symlog\ndef test(): help(), dreamer.kl")
    assert misnamed(tree, "test", {"kl", "symlog"}) == (set(), set())
    assert misnamed(tree, "test", {"kl", "entropy"}) == ({"entropy"}, set())
    assert misnamed(tree, "test", {"symlog"}) == (set(), {"kl"})


def noting(text):
    """The text of dreamer.py with a line in front of every solution that notes its use."""
    lines = text.splitlines(keepends=True)
    for task in sorted(TASKS, key=lambda task: task.body, reverse=True):
        first = lines[task.body[0] - 1]
        indent = first[: len(first) - len(first.lstrip())]
        note = f"{indent}import tests.uses; tests.uses.SEEN.add({task.name!r})\n"
        lines.insert(task.body[0] - 1, note)
    return "".join(lines)


@pytest.fixture(scope="module")
def uses(tmp_path_factory):
    """[(test, the functions that it names, the tasks that it used when it was run)].

    The tests of all weeks are run in a copy that notes what they use."""
    copy = tmp_path_factory.mktemp("uses") / "copy"
    handout.copy_project(copy)
    shutil.copy(ROOT / "tests" / "uses.py", copy / "tests")
    program = copy / catalogue.TASKS
    program.write_text(noting(program.read_text(encoding="utf-8")), encoding="utf-8")
    environment = os.environ | {"USES": str(copy / "uses.json")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.uses", "-m", ALL_WEEKS], cwd=copy,
        env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [(test, set(names), set(used))
            for test, names, used in json.loads((copy / "uses.json").read_text())]


@pytest.mark.slow
def test_every_test_of_a_week_was_run_for_each_of_its_functions(uses):
    expected = {(test.name, name) for test in HELD if test.week for name in test.names}
    assert {(test, name) for test, names, _ in uses for name in names} == expected


@pytest.mark.slow
def test_a_test_uses_every_task_that_it_names_so_that_without_it_the_test_fails(uses):
    tasks = {task.name for task in TASKS}
    assert [(test, names & tasks - used) for test, names, used in uses
            if names & tasks - used] == []


@pytest.mark.slow
def test_a_test_uses_no_task_but_those_that_it_names_and_what_they_build_on(uses):
    assert [(test, used - built_on(names)) for test, names, used in uses
            if used - built_on(names)] == []


@pytest.mark.slow
def test_a_test_needs_nothing_that_is_written_later_than_what_it_names(uses):
    for test, names, used in uses:
        week = max(KNOWN[name].week for name in names)
        assert all(KNOWN[name].week <= week for name in used), (test, used)


def failing(copy, *arguments):
    """Which tests fail in a copy, and which do not; cases that fail at all count as failing."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *arguments],
        cwd=copy, capture_output=True, text=True)
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", done.stdout, re.M)
    assert found, done.stdout + done.stderr
    wrong = {test for result, test in found if result != "PASSED"}
    return wrong, {test for _, test in found} - wrong


@pytest.mark.slow
def test_without_two_bodies_exactly_the_tests_that_rest_on_them_fail(tmp_path):
    copy, names = tmp_path / "copy", {"lambda_returns", "kl"}
    assert handout.main(["--only", ",".join(names), "--out", str(copy)]) == 0
    wrong, right = failing(copy, "tests/test_equations.py", "-k", "lambda or replayed or kl or "
                           "weight or entropy or advantages or losses_of_the_world")
    resting = {test.name for test in HELD if names & built_on(test.names)}
    assert wrong == resting & (wrong | right) and len(wrong) > 5 and len(right) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_without_one_body_exactly_the_tests_that_rest_on_it_fail(name, uses, tmp_path):
    copy = tmp_path / "copy"
    assert handout.main(["--only", name, "--out", str(copy)]) == 0
    wrong, right = failing(copy, "-m", ALL_WEEKS)
    resting = {test for test, _, used in uses if name in used}
    assert wrong == resting and wrong | right == {test.name for test in HELD if test.week}
    assert {test.name for test in catalogue.of(KNOWN[name], HELD)} <= wrong
