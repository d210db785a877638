"""Every submission is graded, whatever it does: on a little course of eight functions."""

import json
import os
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from utils import grade, handout
from utils.course import catalogue

ROOT = Path(__file__).parent.parent
NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight")
# Each number is one more than the one before: `two` builds on `one`, and so on, but for `five`.
FUNCTION = '''
def {name}():
    """Eq. {number} | the number {number}"""
    return {below} + {more}
'''
WEEKS = f"""
1: {{title: small, read: nothing, functions: [{", ".join(NAMES[:-1])}]}}
2: {{title: large, read: nothing, functions: [{NAMES[-1]}]}}
"""
TESTS = '''"""The numbers are what they are called."""
import pytest
import dreamer
'''
TEST = '''
@pytest.mark.{name}
@pytest.mark.parametrize("plus", [0, 1])
def test_{name}_is_{number}(plus):
    assert dreamer.{name}() + plus == {number} + plus
@pytest.mark.{name}
def test_{name}_is_a_whole_number():
    assert isinstance(dreamer.{name}(), int)
'''


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A little project, with the real conftest.py and pyproject.toml, in the place of this one."""
    root, program, tests = tmp_path / "course", '"""Numbers."""\n', TESTS
    for folder in ("utils/core", "docs", "tests/golden"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES, 1):
        below = f"{NAMES[number - 2]}()" if number not in (1, 5) else str(number - 1)
        words = {"name": name, "number": number, "below": below, "more": 1}
        program += FUNCTION.format(**words)
        tests += TEST.format(**words)
    for path in ("jaxmodels_nnx.py", *handout.FILES, *handout.PAGES):
        if not (root / path).is_dir():
            (root / path).write_text("", encoding="utf-8")
    (root / "dreamer.py").write_text(program, encoding="utf-8")
    (root / "tests" / "test_numbers.py").write_text(tests, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", root / "tests")
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "weeks.yaml").write_text(WEEKS, encoding="utf-8")
    monkeypatch.setattr(catalogue, "ROOT", root)
    monkeypatch.setattr(catalogue, "WEEKS", root / "weeks.yaml")
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def submitted(course, tmp_path):
    """The little project as it is handed in: all solved."""
    return Path(shutil.copytree(course, tmp_path / "submitted"))


def graded(submission, *flags):
    """{task: its entry in results.json}, and the whole file."""
    assert grade.main([str(submission), *flags]) == 0
    results = json.loads(Path("results.json").read_text(encoding="utf-8"))
    return {test["name"].split()[0]: test for test in results["tests"]}, results


def rewritten(submission, changes):
    """Give functions of a submission other bodies."""
    path = submission / "dreamer.py"
    text = path.read_text(encoding="utf-8")
    for name, body in changes.items():
        head, _, tail = text.partition(f"def {name}():\n")
        said, _, rest = tail.partition("    return")
        text = f"{head}def {name}():\n{said}    {body}\n{rest.partition(chr(10))[2]}"
    path.write_text(text, encoding="utf-8")


def test_a_right_submission_has_all_points_in_the_format_of_gradescope(submitted, capsys):
    tests, results = graded(submitted)
    assert results["score"] == 8.0 and list(tests) == list(NAMES)
    assert tests["two"] == {"name": "two (Eq. 2)", "score": 1.0, "max_score": 1, "status": "passed",
                            "output": "", "visibility": "visible"}
    assert set(results) == {"score", "execution_time", "tests"}
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["task", "points", "what", "failed"]
    assert [said[line].split() for line in (2, 9)] == [
        ["two", "1", "of", "1"], ["total", "8", "of", "8"]]


def test_a_handout_as_it_was_given_has_no_points(course, tmp_path):
    assert handout.main(["--week", "2", "--out", str(tmp_path / "copy")]) == 0
    tests, results = graded(tmp_path / "copy", "--week", "2")
    assert list(tests) == ["eight"] and results["score"] == 0.0
    assert tests["eight"]["output"].startswith(
        "eight is 8 (0): NotImplementedError: Eq. 8: see the docstring\neight is a whole number: ")


def test_whatever_a_function_does_it_is_graded_and_no_other_with_it(submitted, tmp_path):
    pid, tests = tmp_path / "pid", "tests/test_numbers.py"
    child = (f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time"
             f"; time.sleep(60)']); open({str(pid)!r}, 'w').write(str(child.pid))")
    rewritten(submitted, {
        "one": "return 1.0",
        "two": "import os; os._exit(0)",
        "three": "raise SystemExit(0)",
        "four": "while True: pass",
        "five": "print('\\x1b[31mPASSED \\x00 1 passed ' * 10_000); return 5",
        "six": f"open({tests!r}, 'w').write('def test_six_is_6(): pass'); return 5",
        "seven": f"{child}; return 7",  # and leaves a process behind
        "eight": "assert False, 'x' * 10_000",
    })
    found, results = graded(submitted, "--limit", "6")
    scores = {name: test["score"] for name, test in found.items()}
    assert scores == {"one": 0.5, "two": 0.0, "three": 0.0, "four": 0.0, "five": 1.0, "six": 0.0,
                      "seven": 1.0, "eight": 0.0}
    assert results["score"] == 2.5
    said = {name: test["output"] for name, test in found.items()}
    assert said["one"].startswith("one is a whole number: assert False")
    assert said["two"] == "exited with status 0 before all tests finished"
    assert said["three"].startswith("three is 3 (0): SystemExit: 0")
    assert said["four"] == "no result within 6 s"
    assert said["six"] == f"the tests were tampered with: {tests} was changed"
    assert max(len(line) for line in said["eight"].splitlines()) < 300
    assert said["eight"].startswith("eight is 8 (0): ")
    assert not _runs(int(pid.read_text()))


def _runs(pid):
    """Whether a process is there, and is more than an entry that nobody has collected."""
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], text=True, capture_output=True)
    return status.stdout.strip()[:1] not in ("", "Z")


def test_what_builds_on_a_wrong_task_says_so(submitted):
    rewritten(submitted, {"one": "return 2"})
    found, _ = graded(submitted, "--only", "one,two,five")
    wrong, needs = found["two"]["output"].splitlines()
    assert wrong.startswith("two is 2 (0): ") and needs == "uses functions that failed above: one"
    assert (found["two"]["score"], found["five"]["score"]) == (0.5, 1.0)


def test_tests_and_settings_of_the_submission_do_not_count(submitted):
    rewritten(submitted, {"five": "return 4"})
    test = submitted / "tests" / "test_numbers.py"
    test.write_text(test.read_text(encoding="utf-8").replace("assert", "assert True or"))
    (submitted / "tests" / "conftest.py").write_text("import os; os._exit(0)")
    (submitted / "conftest.py").write_text("import os; os._exit(0)")
    (submitted / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    (submitted / "pytest.py").write_text("")
    found, _ = graded(submitted, "--only", "five")
    assert found["five"]["score"] == 0.5 and found["five"]["output"].startswith("five is 5 (0): ")


@pytest.mark.parametrize("lines", [
    "from _pytest.python import Function\nFunction.runtest = lambda self: None",
    "import numpy.testing\nnumpy.testing.assert_allclose = lambda *_: None",
    "import pytest, contextlib\npytest.raises = lambda _: contextlib.suppress(Exception)",
])
def test_a_submission_that_lets_tests_pass_whatever_they_find_has_no_points(lines, submitted):
    rewritten(submitted, {"five": "return 4"})
    with open(submitted / "dreamer.py", "a", encoding="utf-8") as file:
        file.write(f"\n\n{lines}\n")
    found, _ = graded(submitted, "--only", "five")
    assert (found["five"]["score"], found["five"]["output"]) == (
        0.0, "the tests were tampered with: a test that must fail passed")


def test_a_function_that_lets_later_tests_pass_has_no_points(submitted):
    rewritten(submitted, {"five": "from _pytest.python import Function; "
                                  "Function.runtest = lambda self: None; return 4"})
    found, _ = graded(submitted, "--only", "five")
    assert found["five"]["output"].endswith("a test that must fail passed")


def test_a_submission_that_changes_the_tests_when_it_is_imported_has_no_points(submitted):
    other = catalogue.ROOT / "tests" / "test_other.py"  # collected after it is imported
    text = (other.parent / "test_numbers.py").read_text(encoding="utf-8")
    other.write_text(text.replace("_is_", "_was_"), encoding="utf-8")
    rewritten(submitted, {"five": "return 4"})
    with open(submitted / "dreamer.py", "a", encoding="utf-8") as file:
        file.write("\n\nfrom pathlib import Path\npath = Path('tests/test_other.py')\n"
                   "path.write_text(path.read_text().replace('assert', 'assert True or'))\n")
    found, _ = graded(submitted, "--only", "five")
    assert (found["five"]["score"], found["five"]["output"]) == (
        0.0, "the tests were tampered with: tests/test_other.py was changed")


KILL = "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(9)"


def test_a_submission_that_kills_its_parent_process_loses_its_points_and_no_more(submitted):
    rewritten(submitted, {"five": f"{KILL}; return 5"})
    found, results = graded(submitted, "--only", "four,five")
    assert results["score"] == 1.0
    assert found["five"]["output"] == "exited with status 137 before all tests finished"
    with open(submitted / "dreamer.py", "a", encoding="utf-8") as file:
        file.write(f"\n\n{KILL}\n")
    found, results = graded(submitted, "--only", "four,five")
    assert results["score"] == 0.0
    assert found["four"]["output"] == "exited with status 137 before all tests finished"


@pytest.mark.parametrize("text, words", [
    (b"x = 1\ndef one(:\n", "SyntaxError: invalid syntax (dreamer.py, line 2)"),
    (b"import nothing_such\n", "ModuleNotFoundError: No module named 'nothing_such' "
                               "(dreamer.py, line 1)"),
    (b"import sys\nsys.exit(0)\n", "SystemExit: 0 (dreamer.py, line 2)"),
    (b"import os\nos._exit(0)\n", "exited with status 0 before all tests finished"),
    (b"\xff\xfe\x00", "SyntaxError: source code string cannot contain null bytes"),
])
def test_a_file_that_cannot_be_imported_has_no_points_and_says_why(text, words, submitted):
    (submitted / "dreamer.py").write_bytes(text)
    found, results = graded(submitted, "--only", "one,five")
    assert results["score"] == 0.0 and [test["output"] for test in found.values()] == [words] * 2


def test_a_file_that_hangs_when_it_is_imported_is_tried_only_once(submitted):
    (submitted / "dreamer.py").write_text("while True: pass\n")
    began = time.monotonic()
    found, _ = graded(submitted, "--limit", "3")
    assert {test["output"] for test in found.values()} == {"no result within 3 s"}
    assert time.monotonic() - began < 3 * len(NAMES)


def test_a_submission_without_the_file_has_no_points_and_says_what_is_there(course, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for make, words in (
            (lambda: (other / "Solution.ipynb").touch(), "dreamer.py is missing"),
            (lambda: shutil.copytree(course, other / "week1"),
             "dreamer.py is missing, but week1/dreamer.py is there"),
            (lambda: (other / "dreamer.py").symlink_to(course / "dreamer.py"),
             "dreamer.py is a link, expected a file"),
            (lambda: [(other / "dreamer.py").unlink(), (other / "dreamer.py").mkdir()],
             "dreamer.py is a folder, expected a file")):
        make()
        found, results = graded(other)
        assert results["score"] == 0.0
        assert [test["output"] for test in found.values()] == [words] * len(NAMES)


def test_what_was_graded_is_kept_when_the_grading_is_ended(submitted, monkeypatch):
    judged = grade.judged
    monkeypatch.setattr(grade, "judged", partial(_ended_at, "three", judged))
    assert grade.main([str(submitted), "--only", "one,two,three"]) == 130
    results = json.loads(Path("results.json").read_text(encoding="utf-8"))
    assert results["score"] == 2.0
    assert [test["output"] for test in results["tests"]] == ["", "", "not reached"]


def _ended_at(name, judged, task, *others):
    """Judges a task, but at this one somebody presses Ctrl-C."""
    if task.name == name:
        raise KeyboardInterrupt
    return judged(task, *others)


@pytest.fixture
def students(submitted):
    """Three submissions beside each other: all solved, one task wrong, without the file."""
    folders = {name: submitted.parent / "submissions" / name for name in ("ada", "bo", "cy")}
    for folder in folders.values():
        shutil.copytree(submitted, folder)
    rewritten(folders["bo"], {"five": "return 4"})
    (folders["cy"] / "dreamer.py").unlink()
    return [str(folder) for folder in folders.values()]


def test_a_class_is_graded_in_one_command_into_a_table_and_a_folder_for_each(students, capsys):
    assert grade.main([*students, "--only", "five,six", "--csv", "grades.csv"]) == 0
    assert Path("grades.csv").read_text(encoding="utf-8").splitlines() == [
        "name,total,most,five,six", "ada,2,2,1,1", "bo,1,2,0.5,0.5", "cy,0,2,0,0"]
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["student", "points", "what", "failed"]
    assert [row.split() for row in rows] == [
        ["ada", "2", "of", "2"], ["bo", "1", "of", "2", "five,", "six"],
        ["cy", "0", "of", "2", "dreamer.py", "is", "missing"]]
    assert last == "written      results/*/results.json, grades.csv"
    scores = {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["score"]
              for path in Path("results").glob("*/results.json")}
    assert scores == {"ada": 2.0, "bo": 1.0, "cy": 0.0}
    assert not os.path.exists("results.json")


def test_a_single_submission_has_a_table_too_and_its_results_where_they_were(students):
    assert grade.main([students[2], "--only", "five", "--csv", "grades.csv"]) == 0
    assert Path("grades.csv").read_text(encoding="utf-8") == "name,total,most,five\ncy,0,1,0\n"
    assert os.path.exists("results.json") and not os.path.exists("results")


def test_the_grades_of_a_class_so_far_are_kept_when_the_grading_is_ended(students, monkeypatch):
    monkeypatch.setattr(grade, "judged", partial(_ended_at, "six", grade.judged))
    flags = ["--only", "five,six", "--csv", "grades.csv", "--results", "all"]
    assert grade.main([*students[2:], *students[:2], *flags]) == 130
    assert Path("grades.csv").read_text(encoding="utf-8") == "name,total,most,five,six\n"
    results = json.loads(Path("all/cy/results.json").read_text(encoding="utf-8"))
    assert [test["output"] for test in results["tests"]] == ["dreamer.py is missing", "not reached"]


@pytest.mark.parametrize("flags, words", [
    ([], ["required: DIR"]),
    (["submitted", "submited"], ["submited: no such folder", "did you mean 'submitted'?"]),
    (["submitted", "submitted/dreamer.py"], ["dreamer.py: expected a folder, found a file"]),
    (["submitted", "course/../submitted"], ["has the same name as submitted"]),
    (["submitted", "--csv", "nowhere/grades.csv"], ["nowhere/grades.csv: no such folder"]),
    (["submitted", "--csv", "submitted"], ["submitted: expected a file, found a folder"]),
    (["submited"], ["submited: no such folder", "did you mean 'submitted'?"]),
    (["submitted", "--week", "7"], ["--week", "choice: 7"]),
    (["submitted", "--week", "6"], ["--week 6", "marked by hand"]),
    (["submitted", "--week", "1", "--only", "one"], ["not allowed with"]),
    (["submitted", "--only", "thre"], ["'thre' is not a task", "'three'"]),
    (["submitted", "--limit", "0"], ["--limit", "more than 0"]),
    (["submitted", "--limit", "long"], ["--limit", "'long'"]),
    (["submitted/dreamer.py"], ["submitted/dreamer.py: expected a folder, found a file"]),
    (["submitted", "--results", "submitted/dreamer.py"], ["submitted/dreamer.py: file exists"]),
])
def test_a_mistake_gets_one_line_and_status_2(flags, words, submitted, capsys):
    assert grade.main(flags) == 2 and not os.path.exists("results.json")
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("utils.grade: ") and said.err.count("\n") == 1
    assert all(word in said.err for word in words), said.err


@pytest.mark.parametrize("tool", [grade, handout])
def test_help_says_what_each_flag_does(tool, capsys):
    with pytest.raises(SystemExit) as left:
        tool.main(["--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and said.startswith(f"usage: python -m {tool.__name__}")
    assert "--week N" in said and "--only NAME,NAME" in said
