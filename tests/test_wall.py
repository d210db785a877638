"""The wall: dreamer.py and all that it stands on know nothing of what stands on dreamer.py.

Each rule takes the whole project, {module: syntax tree}, and yields what breaks it."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = {"dreamer", "jaxmodels_nnx", "gymnax_wrappers"}
IMPORTERS = {"import_module", "__import__", "import_when_used", "find_spec"}
LARGEST = 14  # modules of a room: as many as one looks through


@cache  # not at the top: each process that collects tests would read them all
def _project():
    """{module: its tree} of all that is no test."""
    paths = [path.relative_to(ROOT) for path in [*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py")]]
    return {".".join(path.with_suffix("").parts): ast.parse((ROOT / path).read_text("utf-8"))
            for path in paths if path.name != "__init__.py"}


def _imported(tree):
    """Every module or member that is imported, in functions too: `utils.core.cli`, `jax.jit`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def _edges(project):
    """{module: the modules of the project that it imports}."""
    return {module: {known for name in _imported(tree) for known in project
                     if f"{name}.".startswith(f"{known}.")}
            for module, tree in project.items()}


def _is_below(module):
    """Whether it is dreamer.py or one of those on which dreamer.py stands."""
    return module in TOP or module.startswith(
        ("utils.core.", "utils.hosts.", "utils.run.", "utils.worlds."))


def imports_upwards(project):
    """What is below imports nothing that is above, and nothing but that imports dreamer.py."""
    for module, imported in _edges(project).items():
        for other in imported if _is_below(module) else ():
            if other == "dreamer" or not _is_below(other):
                yield f"{module} imports {other}, which is above"


def imports_dreamer4_from_below(project):
    """What dreamer4.py stands on, in utils/dreamer4, imports neither it nor dreamer.py.

    Its commands stand above; its pictures need the writer of films, which knows no agent."""
    known = {"utils.pictures.film"}
    for module, imported in _edges(project).items():
        stands_below = module.startswith("utils.dreamer4.") and not module.endswith(".commands")
        for other in imported - known if stands_below else ():
            if other in ("dreamer", "dreamer4") or not (
                    _is_below(other) or other.startswith("utils.dreamer4.")):
                yield f"{module} imports {other}, which is above"


def imports_by_string(project):
    """Modules of the project are imported by a statement, from the root: no string, no dots."""
    for module, tree in project.items():
        yield from (f"{module} imports {name}" for name in _imported(tree) if name[0] == ".")
        yield from (f"{module} imports {text!r} by a string" for text in _strings_of(tree)
                    if text.partition(".")[0] in TOP | {"utils"})


def _strings_of(tree):
    """The strings in the calls of what imports a module by its name."""
    for call in ast.walk(tree):
        called = getattr(call, "func", None)
        if getattr(called, "attr", getattr(called, "id", None)) in IMPORTERS:
            yield from (part.value for argument in call.args for part in ast.walk(argument)
                        if isinstance(part, ast.Constant) and isinstance(part.value, str))


def imports_in_a_circle(project):
    """No module imports itself through others: modules whose imports are all gone go first."""
    edges = _edges(project)
    while gone := {module for module in edges if not edges[module]}:
        edges = {module: imported - gone for module, imported in edges.items()
                 if module not in gone}
    if edges:
        yield f"a circle among {', '.join(sorted(edges))}, or in front of one"


def has_too_many_modules(project):
    """A folder holds at most 14 modules."""
    for room, count in Counter(module.rpartition(".")[0] for module in project).items():
        if count > LARGEST:
            yield f"{room or 'the top'} holds {count} modules, at most {LARGEST}"


def imports_gymnax(project):
    """Only gymnax_wrappers.py imports gymnax, and the square in its form, which it wraps."""
    for module, tree in project.items():
        if module not in ("gymnax_wrappers", "utils.dreamer4.square_env"):
            yield from (f"{module} imports {name}" for name in _imported(tree)
                        if name.partition(".")[0] == "gymnax")


def imports_gymnasium(project):
    """Only utils/worlds imports gymnasium."""
    for module, tree in project.items():
        if not module.startswith("utils.worlds."):
            yield from (f"{module} imports {name}" for name in _imported(tree)
                        if name.partition(".")[0] == "gymnasium")


def imports_another_room_from_below(project):
    """utils/core stands below all rooms, utils/hosts below utils/run, utils/worlds beside both."""
    rooms = {"utils.core.": ("utils.run.", "utils.worlds.", "utils.hosts."),
             "utils.worlds.": ("utils.run.", "utils.hosts."), "utils.run.": ("utils.worlds.",),
             "utils.hosts.": ("utils.run.", "utils.worlds.")}
    for module, imported in _edges(project).items():
        for room, others in rooms.items():
            yield from (f"{module} imports {other}" for other in imported
                        if module.startswith(room) and other.startswith(others))


RULES = {
    imports_upwards: [
        {"dreamer": "import utils.report", "utils.report": ""},
        {"utils.run.session": "def f():\n    from utils.pictures import film",
         "utils.pictures.film": ""},
        {"utils.core.cli": "import dreamer", "dreamer": ""}],
    imports_dreamer4_from_below: [
        {"utils.dreamer4.layers": "from dreamer import symlog", "dreamer": ""},
        {"utils.dreamer4.session": "import utils.watch", "utils.watch": ""}],
    imports_by_string: [
        {"utils.core.cli": "import importlib\nimportlib.import_module('dreamer')"},
        {"utils.run.sinks": "__import__(f'utils.{x}')"},
        {"utils.run.sinks": "from . import files"}],
    imports_in_a_circle: [
        {"utils.a": "import utils.b", "utils.b": "from utils import c",
         "utils.c": "def f():\n    from utils.a import x"}],
    has_too_many_modules: [{f"utils.run.a{number}": "" for number in range(LARGEST + 1)}],
    imports_gymnax: [{"utils.suite": "from gymnax.environments import spaces"}],
    imports_gymnasium: [{"utils.suite": "import gymnasium"}],
    imports_another_room_from_below: [
        {"utils.core.cli": "from utils.run.files import lock", "utils.run.files": ""},
        {"utils.core.cli": "from utils.worlds import host", "utils.worlds.host": ""},
        {"utils.run.memory": "from utils.worlds import host", "utils.worlds.host": ""},
        {"utils.worlds.host": "from utils.run.files import lock", "utils.run.files": ""},
        {"utils.core.xla": "from utils.hosts import join", "utils.hosts.join": ""},
        {"utils.hosts.parts": "from utils.run.files import lock", "utils.run.files": ""}],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module_breaks_the_rule(rule):
    assert not [*rule(_project())]


@pytest.mark.parametrize("rule, texts", [(rule, texts) for rule in RULES for texts in RULES[rule]],
                         ids=lambda part: getattr(part, "__name__", ""))
def test_a_rule_of_the_wall_sees_what_it_forbids(rule, texts):
    assert [*rule({module: ast.parse(text) for module, text in texts.items()})]


def test_the_project_that_is_looked_at_is_the_whole_one():
    assert TOP | {"utils.report", "utils.core.cli", "utils.run.session"} <= _project().keys()
    assert "utils.core.cli" in _edges(_project())["dreamer"]
