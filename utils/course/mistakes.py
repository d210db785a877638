"""The classic mistakes of docs/mistakes.md, and dreamer.py with one of them in it.

An entry of that page has a heading (its name), the function and what is wrong with it, the change
as a diff, the symptom, and the test that finds it. Nothing else lists the mistakes.
"""

import ast
import re
import sys
import types
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PROGRAM, PAGE = ROOT / "dreamer.py", ROOT / "docs" / "mistakes.md"
ENTRY = re.compile(
    r"(?P<name>[\w-]+)\n\n`(?P<function>[\w.]+)`: (?P<sentence>(?:.+\n)+)\n"
    r"```diff\n(?P<diff>(?:[-+ ].*\n)+)```\n\n"
    r"\*(?P<how>Seen|To expect):\* (?P<symptom>(?:.+\n)+)\n"
    r"\*Found by\* `(?P<test>tests/\w+\.py::\w+)`\n*(?:## .*\n*)?")


class Mistake(NamedTuple):
    """A change of dreamer.py, its symptom, and the test that finds it."""

    name: str
    function: str  # of a method, Class.method
    sentence: str  # what is wrong
    old: list  # complete consecutive lines of the function
    new: list  # the lines that replace them
    symptom: str
    seen: bool  # whether the symptom was observed in a run or is only expected
    test: str  # file::name


def known():
    """{name: Mistake}, in the order of the page.

    Raises: ValueError, one line, for an entry that has another form."""
    found = {}
    for text in re.split("^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        match, name = ENTRY.fullmatch(text), text.partition("\n")[0]
        if match is None:
            raise ValueError(f"{PAGE.name}: {name}: expected a function and a sentence, a diff, "
                             "*Seen:* or *To expect:*, and *Found by* with a test")
        if name in found:
            raise ValueError(f"{PAGE.name}: {name} is listed twice")
        found[name] = _mistake(match)
    return found


def _mistake(match):
    lines = match["diff"].splitlines()
    return Mistake(
        match["name"], match["function"], _one_line(match["sentence"]),
        [line[1:] for line in lines if line[0] in "- "],
        [line[1:] for line in lines if line[0] in "+ "],
        _one_line(match["symptom"]), match["how"] == "Seen", match["test"])


def _one_line(text):
    return " ".join(text.split())


def mutated(mistake, text=None):
    """The text of dreamer.py with the mistake in it.

    Raises: ValueError, one line, where the old lines are not exactly once in the function."""
    text = PROGRAM.read_text(encoding="utf-8") if text is None else text
    lines, (first, last) = text.splitlines(), place(mistake, text)
    size, found = len(mistake.old), []
    for start in range(first, last - size + 1):
        indent = " " * (len(lines[start]) - len(mistake.old[0]))
        if lines[start : start + size] == [indent + line for line in mistake.old]:
            found.append((start, indent))
    if len(found) != 1:
        raise ValueError(f"{mistake.name}: its old lines are {len(found)} times in "
                         f"{mistake.function} of {PROGRAM.name}, expected once")
    ((start, indent),) = found
    lines[start : start + size] = [indent + line for line in mistake.new]
    return "\n".join(lines) + "\n"


def place(mistake, text):
    """First line of the function, counted from 0, and the line behind its last."""
    parts = _parsed(text).body
    for name in mistake.function.split("."):
        found = [part for part in parts if getattr(part, "name", None) == name]
        if not found:
            raise ValueError(f"{mistake.name}: {mistake.function} is not in {PROGRAM.name}")
        parts = found[0].body
    return found[0].lineno - 1, found[0].end_lineno


@lru_cache(maxsize=2)  # a tenth of a second, for each of a hundred mistakes
def _parsed(text):
    return ast.parse(text)


def install(text):
    """Make this text the module `dreamer`, in place of the one that is there.

    Modules that have imported that one, tests included, are imported again when they are needed."""
    old = sys.modules.pop("dreamer", None)
    for name, module in list(sys.modules.items()):
        if old is not None and vars(module).get("dreamer") is old:
            del sys.modules[name]
    module = sys.modules["dreamer"] = types.ModuleType("dreamer")
    module.__file__ = str(PROGRAM)
    exec(compile(text, PROGRAM, "exec"), vars(module))
