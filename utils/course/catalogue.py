"""Which function is which equation, what it builds on, and which tests check it.

Number and words of an equation come from the first line of its docstring (`Eq. 5 | ...`), the week
of a task from weeks.yaml, and what a test checks from its markers, which are names of functions
(`@pytest.mark.lambda_returns`).
"""

import ast
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("dreamer.py", "jaxmodels_nnx.py", "utils/core/optim.py")
TASKS = SOURCES[0]  # the file that students write in
EQUATION = re.compile(r"Eq\. (\d[\d, -]*) \| (.*)")
LINK = re.compile(r"\[`(\w+)`\]\(\.\./(\w+\.py)#L\d+-L\d+\)")  # of docs/reading.md
WEEKS = Path(__file__).with_name("weeks.yaml")


class Week(NamedTuple):
    """A week of the course: its title, what to read, the functions to write, and other work."""

    title: str
    read: str
    functions: tuple = ()
    more: str = ""


class Function(NamedTuple):
    """A function or class that a test can name."""

    name: str
    number: str  # "5", "5-7", or "" where no equation stands in front
    what: str  # the rest of the docstring's first line
    path: str
    line: int
    week: int  # in which students write it, 0 where it is given
    body: tuple  # first and last line of the solution, (0, 0) where it is given
    calls: frozenset  # names of all that it builds on, directly or not

    @property
    def title(self):
        """`Eq. 5`, or the name where there is no number."""
        return f"Eq. {self.number}" if self.number else self.name

    @property
    def points(self):
        """Of a task: one for each line of the solution."""
        return self.body[1] - self.body[0] + 1

    @property
    def marker(self):
        """Of a task: what `pytest -m` needs to choose its tests, and none of a later week."""
        return f"{self.name} and week{self.week}"


class Test(NamedTuple):
    """A test that names at least one function."""

    __test__ = False  # pytest, which imports this, is not to collect it

    path: str
    name: str
    names: tuple  # the functions that it names
    week: int  # the latest of theirs: what it rests on is then there
    recorded: tuple  # golden files, by their stems

    @property
    def sentence(self):
        """The property that the test holds, as its name says it."""
        return self.name.removeprefix("test_").replace("_", " ")


def weeks():
    """{number: Week} of weeks.yaml.

    Raises: ValueError, one line, where it is not such a table or a function stands in two weeks."""
    table = yaml.safe_load(WEEKS.read_text(encoding="utf-8"))
    found = {number: Week(**entries) for number, entries in table.items()}
    listed = [name for week in found.values() for name in week.functions]
    twice = [name for name in listed if listed.count(name) > 1]
    if twice:
        raise ValueError(f"{WEEKS.name}: {twice[0]} stands in two weeks")
    return found


def functions(root=None):
    """{name: Function} of all that a test can name, in the order of the source.

    These are the functions and classes with a docstring and a public name; of methods, those that
    are an equation.

    Raises: ValueError, one line, where weeks.yaml names a function that is not in dreamer.py."""
    found, calls = {}, {}
    week_of = {name: number for number, week in weeks().items() for name in week.functions}
    for path in SOURCES:
        text = ((root or ROOT) / path).read_text(encoding="utf-8")
        for node, key in _definitions(ast.parse(text)):
            calls.setdefault(key, set()).update(_mentioned(node))
            said = (ast.get_docstring(node) or "").partition("\n")[0]
            number, what = (EQUATION.fullmatch(said) or re.match("()(.*)", said)).groups()
            if said and not node.name.startswith("_") and (number or key == node.name):
                week = week_of.pop(node.name, 0) if path == TASKS else 0
                body = _body(node) if week else (0, 0)
                found[key] = Function(node.name, number, what, path, node.lineno, week, body, key)
    if week_of:
        raise ValueError(f"{WEEKS.name}: {min(week_of)} is no function of {TASKS} with a docstring")
    return {one.name: one._replace(calls=_names(_reached(key, calls) & found.keys() - {key}))
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


def _reached(start, calls):
    """Everything that can be reached from this key or name, itself included."""
    seen, ahead = set(), [start]
    while ahead:
        here = ahead.pop()
        if here not in seen:
            seen.add(here)
            ahead += calls.get(here, ())
    return seen


def _body(node):
    """First and last line of what stands behind the docstring of a function."""
    return node.body[1].lineno, node.body[-1].end_lineno


def blanked(text, tasks):
    """The text of a file with the solutions of these tasks taken out."""
    lines = text.splitlines(keepends=True)
    for task in sorted(tasks, key=lambda task: task.body, reverse=True):
        first, last = task.body
        indent = re.match(" *", lines[first - 1])[0]
        said = f'raise NotImplementedError("{task.title}: see the docstring")'
        lines[first - 1 : last] = [f"{indent}{said}\n"]
    return "".join(lines)


def tests(known):
    """[Test] of all tests that name one of the `known` functions by a marker."""
    folder = ROOT / "tests"
    recorded = {path.stem for path in (folder / "golden").glob("*.npz")}
    return [test for path in sorted(folder.glob("test_*.py"))
            for test in _tests_in(path, known, recorded)]


def of(task, held):
    """Those of the tests `held` by which a task is checked: they rest on no later week."""
    return [test for test in held if task.name in test.names and test.week == task.week]


def below(task, others):
    """Names of those of `others` that a task builds on, without what these build on themselves."""
    needs = [one for one in others if one.name in task.calls]
    return [one.name for one in needs if not any(one.name in other.calls for other in needs)]


def _tests_in(path, known, recorded):
    """The tests of one file; `recorded` are the golden files that there are."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {name: part for part in tree.body for name in _bound(part)}
    links = {name: {node.arg if isinstance(node, ast.arg) else node.id for node in ast.walk(part)
                    if isinstance(node, (ast.arg, ast.Name))} for name, part in parts.items()}
    for name, part in parts.items():
        names = tuple(known.keys() & _markers(part)) if name.startswith("test_") else ()
        if names:
            texts = {node.value for one in _reached(name, links) & parts.keys()
                     for node in ast.walk(parts[one]) if isinstance(node, ast.Constant)}
            week = max(known[one].week for one in names)
            yield Test(f"tests/{path.name}", name, names, week, tuple(sorted(recorded & texts)))


def _bound(part):
    """The names that a statement of a module binds."""
    if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
        return [part.name]
    return [node.id for node in ast.walk(part)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _markers(test):
    """X of each pytest.mark.X in front of a test, and of each of its cases."""
    return {node.attr for mark in test.decorator_list for node in ast.walk(mark)
            if isinstance(node, ast.Attribute) and getattr(node.value, "attr", None) == "mark"}


def linked(text, root=None):
    """A page of docs/, each of its links to a function or class at the lines where that stands.

    Raises: KeyError for a name that is not in the file."""
    return LINK.sub(partial(_link, root or ROOT), text)


def _link(root, match):
    name, file = match.groups()
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    lines = {node.name: (node.lineno, node.end_lineno) for node in tree.body
             if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in tree.body:  # a decorator stands above its function
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            lines[node.name] = node.decorator_list[0].lineno, node.end_lineno
    first, last = lines[name]
    return f"[`{name}`](../{file}#L{first}-L{last})"
