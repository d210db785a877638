"""A student's copy: the bodies asked for are found nowhere in it, and all the rest works."""

import ast
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests import pages
from utils import handout
from utils.core import cli
from utils.course import catalogue

ROOT = Path(__file__).parent.parent
KNOWN = catalogue.functions()
TASKS = {name: one for name, one in KNOWN.items() if one.week}


@pytest.fixture(scope="module")
def weeks(tmp_path_factory):
    """{week, or 0 for all of them: its copy}."""
    folder = tmp_path_factory.mktemp("handouts")
    copies = {week: folder / str(week) for week in (0, *handout.WEEKS)}
    for week, copy in copies.items():
        flags = ["--week", str(week)] if week else []
        assert handout.main([*flags, "--out", str(copy)]) == 0
    return copies


def blank(copy):
    """The functions of a copy that only raise."""
    tree = ast.parse((copy / "dreamer.py").read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
            and isinstance(node.body[-1], ast.Raise) and len(node.body) == 2}


def files(copy):
    """{path in the copy: its bytes}."""
    return {path.relative_to(copy).as_posix(): path.read_bytes()
            for path in copy.rglob("*") if path.is_file()}


def test_the_weeks_before_are_solved_and_from_this_week_on_nothing_is(weeks):
    for week, copy in weeks.items():
        assert blank(copy) == {name for name, task in TASKS.items() if task.week >= week}


def test_only_the_named_tasks_are_blank(tmp_path):
    copy = tmp_path / "copy"
    assert handout.main(["--only", "symlog, lambda_returns", "--out", str(copy)]) == 0
    assert blank(copy) == {"symlog", "lambda_returns"}
    text = (copy / "dreamer.py").read_text(encoding="utf-8")
    assert 'raise NotImplementedError("Eq. 5: see the docstring")\n' in text
    handout.main(["--only", "unimix", "--out", str(tmp_path / "other")])
    text = (tmp_path / "other" / "dreamer.py").read_text(encoding="utf-8")
    assert 'raise NotImplementedError("unimix: see the docstring")\n' in text


def test_docstrings_and_signatures_of_blank_functions_stay(weeks):
    copied = catalogue.functions(weeks[0])
    assert copied.keys() == KNOWN.keys()
    for name, one in KNOWN.items():
        assert (copied[name].what, copied[name].number) == (one.what, one.number)
    trees = [ast.parse((root / "dreamer.py").read_text(encoding="utf-8"))
             for root in (ROOT, weeks[0])]
    ours, theirs = ({node.name: (ast.unparse(node.args), ast.get_docstring(node))
                     for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                     and (node.name in TASKS or node in tree.body)} for tree in trees)
    assert ours == theirs


def squeezed(text):
    """A text without its blanks, line ends and comments."""
    return re.sub(r"\s+", "", re.sub(r"#.*", "", text))


def solutions(tasks):
    """{task: its body, squeezed}."""
    lines = (ROOT / "dreamer.py").read_text(encoding="utf-8").splitlines(keepends=True)
    return {task.name: squeezed("".join(lines[task.body[0] - 1 : task.body[1]])) for task in tasks}


def test_no_solution_is_found_anywhere_in_a_copy(weeks):
    every = solutions(TASKS.values())
    program = squeezed((ROOT / "dreamer.py").read_text(encoding="utf-8"))
    assert all(body in program for body in every.values())  # they would be found
    for path, content in files(weeks[0]).items():
        text = squeezed(content.decode("utf-8", "ignore"))
        assert [name for name, body in every.items() if body in text] == [], path
    for copy in weeks.values():  # which differ in these two alone, says the next test
        for name in ("dreamer.py", handout.ASSIGNMENT):
            text, gone = squeezed((copy / name).read_text(encoding="utf-8")), blank(copy)
            assert [task for task in gone if every[task] in text] == []


def told(text, tasks):
    """{task: how many longer lines of its solution stand in a text}."""
    lines, text = (ROOT / "dreamer.py").read_text(encoding="utf-8").splitlines(), squeezed(text)
    text = text.replace("dreamer.", "")
    body = {task.name: [squeezed(line) for line in lines[task.body[0] - 1 : task.body[1]]]
            for task in tasks}
    return {name: sum(len(line) > 30 and line in text for line in body[name]) for name in body}


def test_no_file_of_a_copy_goes_through_what_is_to_be_written(weeks):
    retold = (ROOT / "utils/explain.py").read_text(encoding="utf-8")
    assert told(retold, TASKS.values())["imagination_losses"] >= 2  # it would be found
    for copy in weeks.values():
        gone = [TASKS[name] for name in blank(copy)]
        for path, content in files(copy).items():
            assert max(told(content.decode("utf-8", "ignore"), gone).values(), default=0) < 2, path


def test_what_is_left_out_of_a_copy_says_so_and_is_there_when_all_is_written(weeks):
    for week, copy in weeks.items():
        kept = [path for path in handout.RETELLING
                if (copy / path).read_bytes() == (ROOT / path).read_bytes()]
        assert kept == (list(handout.RETELLING) if week == 6 else [])
    done = subprocess.run([sys.executable, "-m", "utils.explain"], cwd=weeks[1], text=True,
                          capture_output=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("utils.explain: left out") and done.stderr.count("\n") == 1


def test_the_pages_of_a_copy_lead_to_what_is_there(weeks):
    for copy in weeks.values():
        for page in handout.PAGES:
            text = (copy / page).read_text(encoding="utf-8")
            assert catalogue.linked(text, copy) == text
            assert not re.search(r"mistakes\.md|utils\.(handout|grade|equations|mistakes)", text)
            for path in re.findall(r"\]\(([\w./-]+)[)#]", text):
                assert ((copy / page).parent / path).exists(), (page, path)


def test_no_page_of_a_copy_speaks_of_tests_that_stayed_behind_or_counts_lines_that_are_gone(weeks):
    for copy in weeks.values():
        for page in copy.rglob("*.md"):
            text = page.read_text(encoding="utf-8")
            assert "pytest -m slow" not in text, page
            named = set(re.findall(r"\btests[/.](test_\w+)", text))
            assert named <= {path.stem for path in copy.glob("tests/*.py")}, page
        readme = (copy / "README.md").read_text(encoding="utf-8")
        told = re.findall(r"^\| `([\w.]+)` \| (\d+) \|", readme, re.M)
        assert len(told) == 4
        for name, count in told:
            assert abs(len((copy / name).read_text("utf-8").splitlines()) - int(count)) <= 5, name


@pytest.mark.parametrize("week, name", [(5, "rollout"), (None, "symexp")])
def test_a_run_of_an_unfinished_copy_ends_with_one_line_that_says_what_to_write(
        week, name, weeks, tmp_path):
    copy = weeks.get(week, tmp_path / "copy")
    if week is None:
        assert handout.main(["--only", name, "--out", str(copy)]) == 0
    done = subprocess.run(
        [sys.executable, "dreamer.py", "--preset", "debug", "--logdir", str(tmp_path / "run")],
        cwd=copy, text=True, capture_output=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stderr == f"dreamer.py: not written yet: {name}\n" and done.returncode == 2


def test_the_tools_of_teachers_and_the_history_stay_behind_and_nothing_else_is_changed(weeks):
    for copy in weeks.values():
        found, ours = files(copy), {"ASSIGNMENT.md", "dreamer.py", "tests/weeks.json",
                                    *handout.PAGES, *handout.RETELLING}
        assert not {f"utils/{name}" for name in handout.TEACHERS} & found.keys()
        assert not any(path.startswith((".git/", "runs/")) or "__pycache__" in path
                       for path in found)
        assert all((ROOT / path).read_bytes() == content for path, content in found.items()
                   if path not in ours)


def test_the_assignment_names_each_task_its_line_its_points_and_its_tests(weeks):
    held = catalogue.tests(KNOWN)
    for week, copy in weeks.items():
        text = (copy / handout.ASSIGNMENT).read_text(encoding="utf-8")
        lines = (copy / "dreamer.py").read_text(encoding="utf-8").splitlines()
        asked = [task for task in TASKS.values() if week in (0, task.week)]
        asked.sort(key=lambda task: task.week)
        assert re.findall(r"^### `(\w+)`", text, re.M) == [task.name for task in asked]
        found = re.findall(r"^`dreamer.py`, line (\d+)", text, re.M)
        for task, line in zip(asked, found, strict=True):
            assert re.match(f" *def {task.name}\\(", lines[int(line) - 1])
            assert f'python -m pytest -m "{task.marker}"' in text and task.what in text
            assert all(f"* {test.sentence}\n" in text for test in catalogue.of(task, held))
        points = sum(int(n) for n in re.findall(r"^### .* (\d+) points?$", text, re.M))
        assert points == sum(task.points for task in asked)
        assert not asked or f"{points} points in total" in text
    words = " ".join(pages.text().split())
    assert f"all {len(TASKS)} ({sum(task.points for task in TASKS.values())} points)" in words


@pytest.mark.parametrize("values", re.findall(r"`(\w+\.\w+=[\d.]+)`", handout.WEEKS[6].more)
                         + ["learning.lambda_=0"])
def test_each_ablation_that_is_proposed_can_be_trained(values):
    assert cli.parse(["--set", values]).config


def test_a_copy_collects_its_own_tests_and_a_body_that_is_filled_in_passes_them(weeks, tmp_path):
    copy = weeks[1]
    text = (copy / "dreamer.py").read_text(encoding="utf-8")
    head, middle, tail = text.partition('raise NotImplementedError("Eq. 9: see the docstring")')
    assert middle
    solved = "return jnp.where(x < 0, -jnp.log1p(-x), jnp.log1p(x))"
    (copy / "dreamer.py").write_text(head + solved + tail, encoding="utf-8")
    (command,) = re.findall(r"python (-m pytest -m \"symlog.*\")\n",
                            (copy / handout.ASSIGNMENT).read_text(encoding="utf-8"))
    done = subprocess.run(f'"{sys.executable}" {command} -rA', shell=True, cwd=copy, text=True,
                          capture_output=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    (copy / "dreamer.py").write_text(text, encoding="utf-8")
    passed = set(re.findall(r"^PASSED \S+::(\S+)", done.stdout, re.M))
    failed = set(re.findall(r"^FAILED \S+::(\S+)", done.stdout, re.M))
    assert failed == {"test_symexp_undoes_symlog_from_the_smallest_to_the_largest"}  # symexp is not
    assert passed == {"test_symlog_is_official",
                      "test_symlog_and_symexp_are_odd_and_leave_small_numbers_alone[symlog]"}


# ---- Mistakes ------------------------------------------------------------------------------------


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; gives the one line that it says."""
    monkeypatch.chdir(tmp_path)
    return partial(_refused, capsys)


def _refused(capsys, *flags):
    before = sorted(os.listdir())
    status, said = handout.main([*flags]), capsys.readouterr()
    assert (status, said.out, sorted(os.listdir())) == (2, "", before)
    assert said.err.startswith("utils.handout: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("flags, words", [
    ([], ["required: --out"]),
    (["--out", "x", "--week", "7"], ["--week", "choice: 7", "1, 2, 3, 4, 5, 6"]),
    (["--out", "x", "--week", "two"], ["--week", "'two'"]),
    (["--out", "x", "--week", "1", "--only", "symlog"], ["--only: not allowed with", "--week"]),
    (["--out", "x", "--only", "lamda_returns"], ["'lamda_returns'", "'lambda_returns'?"]),
    (["--out", "x", "--only", "symlog,,kl"], ["--only: ''"]),
    (["--out", "x", "--only", "swap_time_and_batch"], ["'swap_time_and_batch' is not a task"]),
    (["--out", "x", "--weeks", "1"], ["--weeks"]),
    (["--out", str(ROOT / "copy")], ["--out", "outside of the project"]),
    (["--out", str(ROOT)], ["--out", "outside of the project"]),
])
def test_a_mistake_in_the_flags_gets_one_line_and_nothing_is_written(flags, words, refuse):
    said = refuse(*flags)
    assert all(word in said for word in words), said
    assert not (ROOT / "copy").exists()


def test_nothing_is_written_over_a_file_or_into_a_folder_that_is_not_empty(refuse, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("all my work")
    assert "full: is not empty" in refuse("--out", "full")
    assert "mine: expected a folder" in refuse("--out", "full/mine")
    assert os.listdir("full") == ["mine"]
    (tmp_path / "empty").mkdir()
    assert handout.main(["--week", "6", "--out", "empty"]) == 0
    assert (tmp_path / "empty" / handout.ASSIGNMENT).exists()


@pytest.mark.parametrize("table, words", [
    ("1: {title: a, read: b, functions: [symlog, symlgo]}",
     "symlgo is not a function of dreamer.py"),
    ("1: {title: a, read: b, functions: [kl]}\n2: {title: a, read: b, functions: [kl]}",
     "kl is listed in two weeks"),
])
def test_a_wrong_name_in_the_table_of_weeks_is_one_line(
        table, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "weeks.yaml").write_text(table, encoding="utf-8")
    monkeypatch.setattr(catalogue, "WEEKS", tmp_path / "weeks.yaml")
    assert words in _refused(capsys, "--out", str(tmp_path / "out"))
