"""The functions of the project with their equations, dependencies, weeks and tests.

The first line of a docstring gives the equation's number and description (`Eq. 5 | ...`),
weeks.yaml the week of a task, and the markers of a test the functions that it checks
(`@pytest.mark.lambda_returns`).
"""

import ast
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("dreamer.py", "jaxmodels_nnx.py")
TASKS = SOURCES[0]  # the file that students edit
EQUATION = re.compile(r"Eq\. (\d[\d, -]*) \| (.*)")
LINK = re.compile(r"\[`(\w+)`\]\(\.\./(\w+\.py)#L\d+-L\d+\)")  # of docs/reading.md
WEEKS = Path(__file__).with_name("weeks.yaml")


class Week(NamedTuple):
    """A week of the course: title, reading, functions to write, and other work."""

    title: str
    read: str
    functions: tuple = ()
    more: str = ""


class Function(NamedTuple):
    """A function or class that a test can name."""

    name: str
    number: str  # "5", "5-7", or "" without an equation
    what: str  # the rest of the docstring's first line
    path: str
    line: int
    week: int  # in which students write it, 0 if it is given
    body: tuple  # first and last line of the solution, (0, 0) if it is given
    calls: frozenset  # names of all functions that it uses, directly or not

    @property
    def title(self):
        """`Eq. 5`, or the name if there is no number."""
        return f"Eq. {self.number}" if self.number else self.name

    @property
    def points(self):
        """The points of a task: one per line of the solution."""
        return self.body[1] - self.body[0] + 1

    @property
    def marker(self):
        """The `pytest -m` expression for a task's tests, excluding those of later weeks."""
        return f"{self.name} and week{self.week}"


class Test(NamedTuple):
    """A test that names at least one function."""

    __test__ = False  # keeps pytest from collecting it

    path: str
    name: str
    names: tuple  # the functions in its markers
    week: int  # the latest week of these functions
    recorded: tuple  # golden files, without suffix

    @property
    def sentence(self):
        """The property that the test checks: its name as a sentence."""
        return self.name.removeprefix("test_").replace("_", " ")


def weeks():
    """Read {number: Week} from weeks.yaml.

    Raises: ValueError, one line, if a function is listed in two weeks."""
    table = yaml.safe_load(WEEKS.read_text(encoding="utf-8"))
    found = {number: Week(**entries) for number, entries in table.items()}
    listed = [name for week in found.values() for name in week.functions]
    twice = [name for name in listed if listed.count(name) > 1]
    if twice:
        raise ValueError(f"{WEEKS.name}: {twice[0]} is listed in two weeks")
    return found


def functions(root=None):
    """{name: Function} of all functions that a test can name, in source order.

    These are public functions and classes with a docstring, and methods that are an equation.

    Raises: ValueError, one line, if weeks.yaml names a function that is not in dreamer.py."""
    found, calls = {}, {}
    week_of = {name: number for number, week in weeks().items() for name in week.functions}
    for path in SOURCES:
        text = ((root or ROOT) / path).read_text(encoding="utf-8")
        for node, key in _definitions(ast.parse(text)):
            calls.setdefault(key, set()).update(_mentioned(node))
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            number, what = (EQUATION.fullmatch(first) or re.match("()(.*)", first)).groups()
            if first and not node.name.startswith("_") and (number or key == node.name):
                week = week_of.pop(node.name, 0) if path == TASKS else 0
                body = _body(node) if week else (0, 0)
                found[key] = Function(node.name, number, what, path, node.lineno, week, body, key)
    if week_of:
        raise ValueError(f"{WEEKS.name}: {min(week_of)} is not a function of {TASKS} "
                         "with a docstring")
    return {one.name: one._replace(calls=_names(_reachable(key, calls) & found.keys() - {key}))
            for key, one in found.items()}


def _definitions(tree):
    """(node, `f` or `.method`) of functions, classes and their methods."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node, node.name
        if isinstance(node, ast.ClassDef):
            yield from ((part, f".{part.name}") for part in node.body
                        if isinstance(part, ast.FunctionDef))


def _mentioned(node):
    """`f` for each name and `.f` for each attribute in a piece of code."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield f".{part.attr}"


def _names(keys):
    return frozenset(key.removeprefix(".") for key in keys)


def _reachable(start, calls):
    """All keys that are reachable from `start`, including itself."""
    visited, queue = set(), [start]
    while queue:
        key = queue.pop()
        if key not in visited:
            visited.add(key)
            queue += calls.get(key, ())
    return visited


def _body(node):
    """First and last line of a function's body after the docstring."""
    return node.body[1].lineno, node.body[-1].end_lineno


def blanked(text, tasks):
    """The text of a file without the solutions of these tasks."""
    lines = text.splitlines(keepends=True)
    for task in sorted(tasks, key=lambda task: task.body, reverse=True):
        first, last = task.body
        indent = re.match(" *", lines[first - 1])[0]
        stub = f'raise NotImplementedError("{task.title}: see the docstring")'
        lines[first - 1 : last] = [f"{indent}{stub}\n"]
    return "".join(lines)


def tests(known):
    """[Test] of all tests with a marker for one of the `known` functions."""
    folder = ROOT / "tests"
    recorded = {path.stem for path in (folder / "golden").glob("*.npz")}
    return [test for path in sorted(folder.glob("test_*.py"))
            for test in _tests_in(path, known, recorded)]


def of(task, tests):
    """The tests that check a task and need no function of a later week."""
    return [test for test in tests if task.name in test.names and test.week == task.week]


def below(task, others):
    """Names of the tasks in `others` that a task uses directly, not through another of them."""
    needs = [one for one in others if one.name in task.calls]
    return [one.name for one in needs if not any(one.name in other.calls for other in needs)]


def _tests_in(path, known, recorded):
    """The tests of one file; `recorded` are the existing golden files."""
    text = path.read_text(encoding="utf-8")
    if not known.keys() & set(re.findall(r"\bmark\.(\w+)", text)):
        return  # most files have no marker and need no parsing
    tree = ast.parse(text)
    parts = {name: part for part in tree.body for name in _bound(part)}
    links = {name: {node.arg if isinstance(node, ast.arg) else node.id for node in ast.walk(part)
                    if isinstance(node, (ast.arg, ast.Name))} for name, part in parts.items()}
    for name, part in parts.items():
        names = tuple(known.keys() & _markers(part)) if name.startswith("test_") else ()
        if names:
            texts = {node.value for one in _reachable(name, links) & parts.keys()
                     for node in ast.walk(parts[one]) if isinstance(node, ast.Constant)}
            week = max(known[one].week for one in names)
            yield Test(f"tests/{path.name}", name, names, week, tuple(sorted(recorded & texts)))


def _bound(part):
    """The names that a module-level statement binds."""
    if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
        return [part.name]
    return [node.id for node in ast.walk(part)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _markers(test):
    """X of each pytest.mark.X of a test and of its cases."""
    return {node.attr for mark in test.decorator_list for node in ast.walk(mark)
            if isinstance(node, ast.Attribute) and getattr(node.value, "attr", None) == "mark"}


def linked(text, root=None):
    """Update the line numbers of a docs/ page's links to functions and classes.

    Raises: KeyError for a name that does not exist in the file."""
    return LINK.sub(partial(_link, root or ROOT), text)


def _link(root, match):
    name, file = match.groups()
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    lines = {node.name: (node.lineno, node.end_lineno) for node in tree.body
             if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in tree.body:  # include the decorator above a function
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            lines[node.name] = node.decorator_list[0].lineno, node.end_lineno
    first, last = lines[name]
    return f"[`{name}`](../{file}#L{first}-L{last})"
