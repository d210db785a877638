"""The suite finds every classic mistake of tests/mutants.py, and the page tells of each."""

import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests import mutants
from tests.mutants import MUTANTS, ROOT
from utils.course import catalogue
from utils.study import runs

SIDE_BY_SIDE = 2  # processes
PAGE = ROOT / "docs" / "mistakes.md"
SIMPLE = "def f(x):\n    return x\n\n\nclass C:\n    def g(self):\n        return 1 + 1\n"


def _checked(names):
    return subprocess.run([sys.executable, "-m", "tests.mutants", "--check", *names], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.mark.slow
def test_each_mistake_makes_the_test_fail_that_is_named_beside_it():
    """In processes of their own: so many copies of dreamer.py leave no trace in this one."""
    by_test = sorted(MUTANTS, key=lambda name: MUTANTS[name].killer)
    half = -(-len(by_test) // SIDE_BY_SIDE)
    parts = [by_test[start : start + half] for start in range(0, len(by_test), half)]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        done = list(pool.map(_checked, parts))
    assert not "".join(part.stderr for part in done)
    lines = "".join(part.stdout for part in done).splitlines()
    assert lines == [f"{name:36} killed by {MUTANTS[name].killer}" for name in by_test]


def test_a_mistake_that_no_test_finds_is_reported_and_so_is_a_test_that_is_not_there(
        monkeypatch, capsys):
    monkeypatch.setattr(mutants, "install", lambda text: None)  # dreamer.py stays as it is
    harmless = MUTANTS["no-baseline"]
    missing = harmless._replace(killer="test_equations.py::test_that_nobody_wrote")
    monkeypatch.setattr(mutants, "MUTANTS", {"harmless": harmless, "missing": missing})
    tests = {harmless.killer: "passed", missing.killer: None}
    monkeypatch.setattr(mutants, "tested", partial(_pretended, tests))
    assert mutants.check(["harmless", "missing"]) == 1
    said = capsys.readouterr()
    assert f"harmless: survives {harmless.killer}: it passes" in said.err
    assert f"missing: survives {missing.killer}: there is no such test" in said.err


def _pretended(tests, killers):
    """Stands in for a run of the tests."""
    outcomes = mutants.Outcomes()
    outcomes.passed = [killer for killer in killers if tests[killer]]
    return outcomes


@pytest.mark.parametrize("function, old, said", [
    ("f", "y", "stands there 0 times"), ("C.g", "1", "stands there 2 times"),
    ("h", "x", "h: is not in"), ("C.f", "x", "C.f: is not in")])
def test_a_mistake_that_the_code_has_outgrown_is_an_error(function, old, said):
    mutant = mutants.Mutant(function, old, "z", "", "", "")
    with pytest.raises(ValueError, match=said):
        mutants.mutated(mutant, SIMPLE)


def test_a_mistake_is_made_in_its_function_alone():
    mutant = mutants.Mutant("C.g", "1 + 1", "3", "", "", "")
    assert mutants.mutated(mutant, SIMPLE) == SIMPLE.replace("1 + 1", "3")
    mutant = mutants.Mutant("f", "return x", "return 2 * x", "", "", "")
    assert mutants.mutated(mutant, SIMPLE) == SIMPLE.replace("return x", "return 2 * x")


def test_no_mistake_is_listed_twice_and_every_change_changes_something():
    changes = [(mutant.function, mutant.old, mutant.new) for mutant in MUTANTS.values()]
    assert Counter(changes).most_common(1)[0][1] == 1
    assert all(mutant.old != mutant.new for mutant in MUTANTS.values())


def test_each_equation_can_be_got_wrong_in_two_ways_at_least():
    count = Counter(mutant.function.rpartition(".")[2] for mutant in MUTANTS.values())
    numbered = [name for name, one in catalogue.functions().items()
                if one.number and one.path == catalogue.TASKS and name[0].islower()]
    assert len(numbered) > 20 and [name for name in numbered if count[name] < 2] == []


def test_the_page_for_students_is_the_one_of_this_list():
    assert PAGE.read_text(encoding="utf-8") == mutants.page(), (
        "fill it by: python -m tests.mutants --page > docs/mistakes.md")


def test_what_is_said_to_be_seen_was_seen_in_a_run_that_is_kept():
    found = runs.read(mutants.CURVES)
    assert {name for name, mutant in MUTANTS.items() if mutant.seen} == set(found) - {mutants.NONE}
    assert found[mutants.NONE]["status"] == 0 and mutants.PICTURE.exists()
    assert max(value for _, value in found[mutants.NONE]["curve"]) >= 475


def kept(found, name):
    """All numbers that are kept of a run with a mistake and of the one without."""
    runs_of = (found[name], found[mutants.NONE])
    return [value for run in runs_of
            for value in (*run["last"].values(), *(score for _, score in run["curve"]))]


def test_each_number_that_is_said_to_be_seen_is_one_that_is_kept():
    found = runs.read(mutants.CURVES)
    for name, mutant in MUTANTS.items():
        said = mutant.symptom if mutant.seen else ""
        for before, word in re.findall(r"(\w*)[ (]+(\d+(?:\.\d+)?)\b", said):
            number, digits = float(word), len(word.partition(".")[2])
            if before == "below":
                assert max(score for _, score in found[name]["curve"][1:]) < number, (name, word)
            elif number > 2 or digits:
                near = [abs(value - number) for value in kept(found, name)]
                assert min(near) <= 0.5001 * 10**-digits, (name, word)


@pytest.mark.parametrize("flags, words", [
    (["no-basline"], ["no-basline", "'no-baseline'"]),
    (["--chekc"], ["--chekc", "--check"]),
    (["--check", "actor-sing"], ["actor-sing", "'actor-sign'"]),
])
def test_a_wrong_name_gets_one_line_and_status_2(flags, words, capsys):
    assert mutants.main(flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and all(w in said.err for w in words)


def test_the_list_names_every_mistake(capsys):
    assert mutants.main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(MUTANTS)


def test_a_program_that_was_changed_since_gets_one_line(monkeypatch, tmp_path, capsys):
    changed = tmp_path / "dreamer.py"
    changed.write_text(mutants.SOURCE.read_text(encoding="utf-8").replace("returns - values", "0"),
                       encoding="utf-8")
    monkeypatch.setattr(mutants, "SOURCE", changed)
    assert mutants.main(["no-baseline"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "advantages: '(returns - values)' stands there 0 times" in said.err


def test_help_says_what_can_be_asked_for(capsys):
    assert mutants.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(flag in said for flag in mutants.FLAGS[:3])
