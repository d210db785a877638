"""docs/mistakes.md: its entries fit dreamer.py, and the suite finds every one of them."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import pages
from utils import mistakes as command
from utils.course import catalogue, mistakes
from utils.study import runs

ROOT = mistakes.ROOT
KNOWN = mistakes.known()
SIDE_BY_SIDE = 2  # processes
SIMPLE = "def f(x):\n    return x\n\n\nclass C:\n    def g(self):\n        y = 1\n        y = 1\n"
ENTRY = """### doubled

`f`: twice
the value.

```diff
-return x
+y = 2 * x
+return y
```

*To expect:* More of
everything.

*Found by* `tests/test_mistakes.py::test_x`
"""


def _checked(names):
    return subprocess.run([sys.executable, "-m", "utils.mistakes", "--check", *names], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.slow
def test_each_mistake_makes_the_test_fail_that_is_named_beside_it():
    """In processes of their own: so many copies of dreamer.py leave no trace in this one."""
    by_test = sorted(KNOWN, key=lambda name: KNOWN[name].test)
    half = -(-len(by_test) // SIDE_BY_SIDE)
    parts = [by_test[start : start + half] for start in range(0, len(by_test), half)]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        done = list(pool.map(_checked, parts))
    assert not "".join(part.stderr for part in done)
    lines = "".join(part.stdout for part in done).splitlines()
    assert lines == [f"{name:36} killed by {KNOWN[name].test}" for name in by_test]


def test_a_mistake_that_no_test_finds_is_reported_and_so_is_a_test_that_is_not_there(
        monkeypatch, capsys):
    outcomes = [command.Outcomes() for _ in range(4)]
    outcomes[1].passed = ["its test"]
    outcomes[3].failed = {"its test": "setup: TypeError"}
    monkeypatch.setattr(mistakes, "install", lambda text: None)
    monkeypatch.setattr(command, "tested", lambda tests: outcomes.pop(0))
    names = ["no-baseline", "actor-sign", "no-limit"]
    assert command.check(KNOWN, dict.fromkeys(names, "")) == 1
    said = capsys.readouterr().err.splitlines()
    why = ["it passes", "there is no such test", "it fails otherwise (setup: TypeError)"]
    assert said == [f"{name}: survives {KNOWN[name].test}: {reason}"
                    for name, reason in zip(names, why)]


# ---- Reading and applying an entry ---------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    """page(text) makes it the page."""
    path = tmp_path / "mistakes.md"
    monkeypatch.setattr(mistakes, "PAGE", path)
    return lambda text: path.write_text(text, encoding="utf-8")


def test_an_entry_is_read_whole_and_its_change_is_made(page):
    page(f"# Mistakes\n\nWords.\n\n## Part\n\n{ENTRY}\n## Next part\n")
    (one,) = mistakes.known().values()
    assert one == mistakes.Mistake(
        "doubled", "f", "twice the value.", ["return x"], ["y = 2 * x", "return y"],
        "More of everything.", False, "tests/test_mistakes.py::test_x")
    changed = SIMPLE.replace("    return x", "    y = 2 * x\n    return y")
    assert mistakes.mutated(one, SIMPLE) == changed


def test_lines_that_stay_are_part_of_a_change(page):
    page(ENTRY.replace("-return x\n+y = 2 * x\n", "+y = 2 * x\n return x\n"))
    assert "    y = 2 * x\n    return x\n    return y\n" in mistakes.mutated(
        mistakes.known()["doubled"], SIMPLE)


@pytest.mark.parametrize("text, said", [
    (ENTRY.replace("```diff", "```python"), "doubled: expected a function"),
    (ENTRY.replace("*Found by*", "Found by"), "doubled: expected a function"),
    (ENTRY.replace("`f`", "f"), "doubled: expected a function"),
    (ENTRY.replace("To expect", "Expected"), "doubled: expected a function"),
    (f"{ENTRY}\n{ENTRY}", "doubled is listed twice"),
])
def test_an_entry_of_another_form_is_one_line(page, text, said, capsys):
    page(text)
    assert said in refused(capsys)


@pytest.mark.parametrize("function, old, said", [
    ("f", "y", "are 0 times in f"), ("C.g", "y = 1", "are 2 times in C.g"),
    ("f", "eturn x", "are 0 times in f"), ("h", "x", "h is not in"), ("C.f", "x", "C.f is not in")])
def test_a_mistake_that_the_code_has_outgrown_is_an_error(function, old, said):
    mistake = KNOWN["no-baseline"]._replace(function=function, old=[old])
    with pytest.raises(ValueError, match=said):
        mistakes.mutated(mistake, SIMPLE)


# ---- The entries of the page ---------------------------------------------------------------------


def test_each_change_can_be_made_is_still_python_and_is_listed_once():
    program = mistakes.PROGRAM.read_text(encoding="utf-8")
    changed = Counter(ast.dump(ast.parse(text)) for text in (
        program, *(mistakes.mutated(mistake, program) for mistake in KNOWN.values())))
    assert len(changed) == len(KNOWN) + 1


def test_every_test_that_is_named_is_there():
    there = {f"tests/{path.name}::{name}" for path in ROOT.glob("tests/test_*.py")
             for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)}
    assert {mistake.test for mistake in KNOWN.values()} - there == set()


def test_each_equation_can_be_got_wrong_in_two_ways_at_least():
    count = Counter(mistake.function.rpartition(".")[2] for mistake in KNOWN.values())
    numbered = [name for name, one in catalogue.functions().items()
                if one.number and one.path == catalogue.TASKS and name[0].islower()]
    assert len(numbered) > 20 and [name for name in numbered if count[name] < 2] == []


def test_the_entries_are_in_the_order_of_the_program_under_the_titles_of_its_sections():
    banner = re.compile(r"# ---- (.*?) -+$", re.MULTILINE)
    program, page = (path.read_text(encoding="utf-8") for path in (mistakes.PROGRAM, mistakes.PAGE))
    titles, expected = [""] + banner.findall(program), []
    for mistake in KNOWN.values():
        line = mistakes.place(mistake, program)[0]
        before = program.splitlines()[:line]
        expected.append((titles[len(banner.findall("\n".join(before)))], line, mistake.name))
    lines = [line for _, line, _ in expected]
    assert lines == sorted(lines)
    shown = re.findall(r"^(###?) (.*)", page, re.MULTILINE)
    found, title = [], ""
    for level, text in shown:
        title = text if level == "##" else title
        found += [(title, text)] * (level == "###")
    assert found == [(title, name) for title, _, name in expected]


# ---- What was seen -------------------------------------------------------------------------------


def test_what_is_said_to_be_seen_was_seen_in_a_run_that_is_kept():
    found = runs.read(command.CURVES)
    seen = {name for name, mistake in KNOWN.items() if mistake.seen}
    assert seen == set(found) - {command.NONE}
    assert found[command.NONE]["status"] == 0 and command.PICTURE.exists()
    assert max(value for _, value in found[command.NONE]["curve"]) >= 475


def kept(found, name):
    """All numbers that are kept of a run with a mistake and of the one without."""
    return [value for run in (found[name], found[command.NONE])
            for value in (*run["last"].values(), *(score for _, score in run["curve"]))]


def test_each_number_that_is_said_to_be_seen_is_one_that_is_kept():
    found = runs.read(command.CURVES)
    for name, mistake in KNOWN.items():
        said = mistake.symptom if mistake.seen else ""
        for before, word in re.findall(r"(\w*)[ (]+(\d+(?:\.\d+)?)\b", said):
            number, digits = float(word), len(word.partition(".")[2])
            if before == "below":
                assert max(score for _, score in found[name]["curve"][1:]) < number, (name, word)
            elif number > 2 or digits:
                near = [abs(value - number) for value in kept(found, name)]
                assert min(near) <= 0.5001 * 10**-digits, (name, word)


# ---- The command ---------------------------------------------------------------------------------


def refused(capsys, *flags):
    """The one line that the command says to what it cannot do."""
    status, said = command.main([*flags]), capsys.readouterr()
    assert (status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("utils.mistakes: ")
    return said.err


@pytest.mark.parametrize("flags, words", [
    (["no-basline"], ["no-basline", "'no-baseline'"]),
    (["--chekc"], ["--chekc", "'--check'"]),
    (["--check", "actor-sing"], ["actor-sing", "'actor-sign'"]),
    (["--curves", "actor-sing"], ["actor-sing", "'actor-sign'"]),
    (["--check", "--curves"], ["--curves", "--check"]),
])
def test_a_wrong_flag_or_name_gets_one_line_and_status_2(flags, words, capsys):
    said = refused(capsys, *flags)
    assert all(word in said for word in words)


def test_the_list_names_every_mistake(capsys):
    assert command.main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(KNOWN)


def test_the_mistake_that_the_pages_say_to_train_with_first_fails_soon():
    curves = json.loads(command.CURVES.read_text(encoding="utf-8"))
    names = set(re.findall(r"python -m utils\.mistakes ([a-z][a-z-]+) --steps", pages.text()))
    assert names, "no page says how to train with a mistake"
    for name in names:
        soon = [value for step, value in curves[name]["curve"] if step > 1000]
        assert max(soon) < 0.1 * curves["full"]["curve"][-1][1], name


def test_a_program_that_was_changed_since_gets_one_line(monkeypatch, tmp_path, capsys):
    changed = tmp_path / "dreamer.py"
    program = mistakes.PROGRAM.read_text(encoding="utf-8")
    changed.write_text(program.replace("returns - values", "0"), encoding="utf-8")
    monkeypatch.setattr(mistakes, "PROGRAM", changed)
    said = refused(capsys, "no-baseline")
    assert "no-baseline: its old lines are 0 times in advantages of dreamer.py" in said


def test_an_agent_is_trained_with_the_mistake_by_the_flags_of_the_program(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(mistakes, "install", given.append)
    monkeypatch.setitem(sys.modules, "dreamer", type(sys)("dreamer"))
    sys.modules["dreamer"].main = lambda flags: given.append(flags) or 143
    assert command.main(["actor-sign", "--steps", "9", "--help"]) == 143
    text, flags = given
    assert "return reinforce - eta" in text and flags == ["--steps", "9", "--help"]
    said = capsys.readouterr().out
    assert f"actor-sign: {KNOWN['actor-sign'].sentence}" in said
    assert "python -m utils.mistakes actor-sign --resume" in said
