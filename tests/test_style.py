"""The house rules: those of ruff, and those that ruff lacks, kept by reading the source.

Each problem is a line of file, place and rule. What may import what is in test_wall.py."""

import ast
import functools
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from utils.core import config as configuration
from utils.core.settings import Config
from utils.dreamer4.settings import Config as Config4

ROOT = Path(__file__).parent.parent
TOP = {"dreamer.py", "dreamer.yaml", "dreamer4.py", "dreamer4.yaml", "jaxmodels_nnx.py",
       "gymnax_wrappers.py", "utils", "tests", "requirements.txt", "README.md", ".ci", ".gitignore",
       "LICENSE", "pyproject.toml", "docs", "CONTRIBUTING.md", "CITATION.cff", ".github"}
SCHEMAS = [("dreamer.yaml", "utils.core.settings", Config),
           ("dreamer4.yaml", "utils.dreamer4.settings", Config4)]
LOOPS = {"map", "scan", "while_loop", "fori_loop", "shard_map"}
# Called from outside, not by the program: the equations that tests and teachers call, what reads
# the weights that a run leaves, and the picture of the ten-seed run.
FOR_CALLERS = {
    "dreamer": {"symlog", "symexp", "value_bins", "twohot_mean", "twohot_loss", "unimix",
                "lambda_returns", "main"},
    "utils.run.arrays": {"load", "unflatten"},
    "utils.run.curves": {"seeds_curve"},
    "utils.core.cli": {"error"},  # by argparse
    "utils.mistakes": {"pytest_runtest_logreport", "pytest_exception_interact"},  # by pytest
    "utils.run.display": {"on_broken_pipe"},  # by rich
    "utils.dreamer4.square_env": {"make"},  # by --env
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITION = (*FUNCTION, ast.ClassDef)


class Source(typing.NamedTuple):
    """A Python file: its path from the root, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self):
        """utils/core/config.py as utils.core.config."""
        return self.path.removesuffix(".py").replace("/", ".")

    @property
    def is_test(self):
        """Whether it is one of the tests."""
        return self.path.startswith("tests/")


def _source(path):
    text = path.read_text(encoding="utf-8")
    return Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text))


@functools.cache  # not at the top: each process that collects tests would read them all
def _sources():
    return [_source(path) for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py")])]


@functools.cache
def _tests():
    return [_source(path) for path in sorted(ROOT.glob("tests/*.py"))]


def _fail_on(problems):
    """Fails with one line for each (path, line, rule)."""
    lines = [f"{path}:{line}: {rule}" for path, line, rule in sorted(set(problems))]
    assert not lines, "\n" + "\n".join(lines)


def _functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def _length(node):
    return node.end_lineno - node.lineno + 1


def _last_name(node):
    """`scan` of jax.lax.scan, `run` of config.run, `x` of x."""
    return getattr(node, "attr", getattr(node, "id", None))


def _names(tree):
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def _inherited(source):
    """Methods of the tests' derived classes: they keep a contract that their base documents."""
    classes = [node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    return {part for node in classes if source.is_test and node.bases for part in node.body}


def _ruff(*arguments, text=None):
    """What `ruff check` finds, a line each."""
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    if not ruff:
        pytest.skip("ruff is not installed: pip install -r requirements.txt")
    command = [ruff, "check", "--quiet", "--no-cache", "--output-format", "concise", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=text)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_ruff_finds_nothing():
    found = _ruff(".")
    assert not found, "\n" + "\n".join(found)


def test_ruff_sees_what_it_is_to_forbid():
    text = """import os
def f(a, b, c, d, e, g, h):
    # x = f(a)
    try:
        x
    except Exception:
        x
""" + f"x = {'1' * 100}"
    found = _ruff("--stdin-filename", "utils/x.py", "-", text=text)
    assert {line.split()[1] for line in found} >= {
        "BLE001", "D100", "D103", "E501", "ERA001", "F401", "PLR0913"}


# ------------------------------------------------------------------------------------------------
# Rules about one file: each yields (line, what is wrong)
# ------------------------------------------------------------------------------------------------


def long_function(source):
    """Functions have at most 40 lines."""
    for function in _functions(source.tree):
        if _length(function) > 40:
            yield function.lineno, f"{function.name} has {_length(function)} lines, at most 40"


def nested_function(source):
    """A function inside a function is the body of a loop, short, and holds no other."""
    for outer in _functions(source.tree):
        calls = [node for node in ast.walk(outer) if isinstance(node, ast.Call)]
        bodies = {_last_name(part) for call in calls if _last_name(call.func) in LOOPS
                  for part in call.args}
        for inner in _functions(outer)[1:]:
            if inner.name not in bodies:
                yield inner.lineno, f"{inner.name} inside {outer.name} is no body of a scan or loop"
            if _length(inner) > 12:
                yield inner.lineno, f"{inner.name} is nested and longer than 12 lines"
            if _functions(inner)[1:]:
                yield inner.lineno, f"{inner.name} is nested and has a function inside"


def deep_block(source):
    """Blocks are at most 4 deep, the function's own the first."""
    for function in _functions(source.tree):
        for node in ast.walk(function):
            if isinstance(node, ast.stmt) and node.col_offset - function.col_offset > 4 * 4:
                yield node.lineno, f"a block more than 4 deep in {function.name}"


def keyword_catcher(source):
    """No **kwargs in a signature: it would swallow a misspelt name."""
    for node in ast.walk(source.tree):
        if isinstance(node, (*FUNCTION, ast.Lambda)) and node.args.kwarg:
            yield node.lineno, f"**{node.args.kwarg.arg} in a signature"


def many_returned(source):
    """At most 3 values are returned, else a named record."""
    for function in set(_functions(source.tree)) - _inherited(source):
        for node in ast.walk(function):
            value = node.value if isinstance(node, ast.Return) else None
            if isinstance(value, ast.Tuple) and len(value.elts) > 3:
                yield node.lineno, f"{len(value.elts)} values returned, at most 3"


def unsafe_yaml(source):
    """YAML is read by the safe loader, or by a class of this file made from it."""
    classes = [node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    safe = {"SafeLoader"} | {node.name for node in classes
                             if [_last_name(base) for base in node.bases] == ["SafeLoader"]}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and re.fullmatch(
                r"yaml\.(full_|unsafe_)?load(_all)?", ast.unparse(node.func)):
            loaders = [_last_name(word.value) for word in node.keywords if word.arg == "Loader"]
            if not node.func.attr.startswith("load") or not safe.issuperset(loaders or [None]):
                yield node.lineno, f"{ast.unparse(node.func)} without the safe loader"


RULES = [long_function, nested_function, deep_block, keyword_catcher, many_returned, unsafe_yaml]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    _fail_on((source.path, line, problem) for source in _sources() + _tests()
             for line, problem in rule(source))


@pytest.mark.parametrize("rule, text", [
    (long_function, "def f():\n" + "    x\n" * 40),
    (nested_function, "def f():\n    def g():\n        x\n    return g"),
    (nested_function, "def f():\n    def g():\n" + "        x\n" * 12 + "    scan(g)"),
    (nested_function, "def f():\n    def g():\n        def h():\n            x\n    scan(g, h)"),
    (deep_block, "def f():\n    if x:\n        if x:\n            if x:\n                if x:\n"
                 "                    x"),
    (keyword_catcher, "f = lambda **g: x"),
    (many_returned, "def f():\n    return 1, 2, 3, 4"),
    (unsafe_yaml, "yaml.load(x)"),
    (unsafe_yaml, "yaml.load(x, Loader=yaml.FullLoader)"),
    (unsafe_yaml, "yaml.unsafe_load(x)"),
], ids=lambda part: getattr(part, "__name__", ""))
def test_a_rule_sees_what_it_forbids(rule, text):
    assert list(rule(Source("utils/x.py", text, ast.parse(text))))


# ------------------------------------------------------------------------------------------------
# Rules about all files together
# ------------------------------------------------------------------------------------------------


def _used(sources):
    """(module, name) of everything that a module takes from another, through whatever alias."""
    for source in sources:
        modules = {}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                modules |= {alias.asname or alias.name: alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.module, alias.name) for alias in node.names)
                modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}"
                            for alias in node.names}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in modules:
                yield modules[node.value.id], node.attr


def _unused(sources):
    """(path, line, rule) of functions, classes and methods that nothing refers to."""
    used = set(_used(sources))
    attributes = {node.attr for source in sources for node in ast.walk(source.tree)
                  if isinstance(node, ast.Attribute)}
    for source in sources:
        names, called = _names(source.tree), FOR_CALLERS.get(source.module, ())
        for node in (node for node in source.tree.body if isinstance(node, DEFINITION)):
            here = names.count(node.name) > _names(node).count(node.name)
            if not (here or node.name in called or (source.module, node.name) in used):
                yield source.path, node.lineno, f"{node.name} is used nowhere"
        for method in _methods(source.tree):
            known = method.name in called or method.name.startswith("__")
            if method.name not in attributes and not known:
                yield source.path, method.lineno, f"{method.name} is used nowhere"


def _methods(tree):
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [part for node in classes for part in node.body if isinstance(part, FUNCTION)]


def test_every_function_is_used():
    _fail_on(_unused(_sources()))


def test_a_function_that_only_calls_itself_or_shares_its_name_with_another_is_unused():
    own = "def f():\n    f()\nclass C:\n    def g(self):\n        x"
    other = "from utils import b\nimport jax\njax.f(b.h)"
    sources = [Source(f"utils/{name}.py", text, ast.parse(text))
               for name, text in (("a", own), ("b", "def h():\n    x"), ("c", other))]
    assert [rule.split()[0] for _, _, rule in _unused(sources)] == ["f", "C", "g"]


@pytest.mark.parametrize("file, module, schema", SCHEMAS)
def test_every_field_of_the_configuration_is_read(file, module, schema):
    sections = set(typing.get_type_hints(schema)) | {"section", "shape"}  # one of the schema's
    trees = [source.tree for source in _sources() if source.module != module]
    trees += [part for source in _sources() if source.module == module
              for part in source.tree.body if isinstance(part, FUNCTION)]  # its checks do not count
    read = {node.attr for tree in trees for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and _last_name(node.value) in {"config", *sections}}
    settings = next(source for source in _sources() if source.module == module)
    _fail_on((settings.path, node.lineno, f"{node.target.id} is read nowhere")
             for node in ast.walk(settings.tree)
             if isinstance(node, ast.AnnAssign) and node.target.id not in read)


@pytest.mark.parametrize("name, most", [("dreamer.py", 980), ("dreamer4.py", 1000)])
def test_the_algorithm_has_few_lines(name, most):
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert lines <= most, f"{name}:{lines}: at most {most} lines"


def test_the_tracked_names_at_the_top_are_the_fixed_list():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    assert {name.split("/")[0] for name in files} == TOP


# ------------------------------------------------------------------------------------------------
# The comments of dreamer.yaml and dreamer4.yaml
# ------------------------------------------------------------------------------------------------


def _yaml_comments(file):
    """(section, key or None) -> (line, comment), of the part in front of the presets."""
    text, section, found = (ROOT / file).read_text(encoding="utf-8"), None, {}
    for number, line in enumerate(text.split("\npresets:")[0].splitlines(), 1):
        match = re.fullmatch(r"(  )?(\w+):.*?(?:#\s*(.*))?", line)
        if match:
            section = section if match[1] else match[2]
            found[section, match[2] if match[1] else None] = number, match[3]
    return found


def _same(text, value):
    """Is this the value, as the YAML would have it? PyYAML reads 3e-4 as text."""
    if isinstance(value, tuple):
        return tuple(yaml.safe_load(text)) == value
    if isinstance(value, bool):
        return yaml.safe_load(text) is value
    return text == value if isinstance(value, str) else float(text) == value


@pytest.mark.parametrize("file, module, schema", SCHEMAS)
def test_every_key_of_the_yaml_says_its_meaning_and_the_papers_value_where_ours_differs(
        file, module, schema):
    ours, paper = (configuration.rows(configuration.load(ROOT / file, schema, presets))
                   for presets in ([], ["paper"]))
    comments, problems = _yaml_comments(file), []
    for (section, key, meaning, value), (*_, papers) in zip(ours, paper, strict=True):
        line, comment = comments[section, key]
        words, differs, number = (comment or "").partition(" - paper: ")
        if words != meaning:
            problems.append((file, line, f"{key} is {meaning!r} in {module}"))
        if bool(differs) != (value != papers) or (differs and not _same(number, papers)):
            problems.append((file, line, f"{key}: we have {value}, the paper {papers}"))
    _fail_on(problems)


@pytest.mark.parametrize("file, module, schema", SCHEMAS)
def test_every_section_of_the_yaml_says_what_its_dataclass_says(file, module, schema):
    comments = _yaml_comments(file)
    for section, part in typing.get_type_hints(schema).items():
        line, comment = comments[section, None]
        assert comment == part.__doc__, f"{file}:{line}: {section}"


def test_the_readme_counts_the_lines_of_each_file_right_within_a_hundred():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w.]+)` \| (\d+) \|", readme, re.MULTILINE)
    assert len(told) == 4
    for name, count in told:
        assert abs(len((ROOT / name).read_text(encoding="utf-8").splitlines()) - int(count)) < 100
