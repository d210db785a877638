"""The run's folder, its two files of JSON lines, and what a terminal or a pipe gets to see."""

import contextlib
import errno
import io
import json
import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from utils import logger
from utils.logger import Logger, Progress, make_folder

ROOT = Path(__file__).parent.parent
EPISODE = {"step": 40, "env": 3, "return": 9.0, "length": 10}
SCRIPT = """
from utils.logger import Logger, Progress
with Logger({folder!r}, 100) as log:
    log.say("compiling [bold] ...")
    log.show(Progress(50, 100, 10, 12.5, 12.5, 9.0, 20.0, 50.0, 1.0, 1.0))
"""


def _rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain_output(folder, shown):
    """The lines that a pipe gets when these records of progress are shown."""
    text = io.StringIO()
    with Logger(folder, 1000, Console(file=text, force_terminal=False, width=40)) as log:
        for progress in shown:
            log.show(progress)
    return text.getvalue().splitlines()


def _start_script(folder, stdout):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "TERM": "xterm"}
    script = SCRIPT.format(folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=stdout)


def terminal_output(folder):
    """What the script sends to a terminal; the end of a terminal reads as an error on Linux."""
    ours, theirs = pty.openpty()
    script, parts = _start_script(folder, theirs), []
    os.close(theirs)
    with contextlib.suppress(OSError):
        while part := os.read(ours, 1024):
            parts.append(part)
    os.close(ours)
    assert script.wait() == 0
    return b"".join(parts).decode()


def test_two_runs_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logger.time, "strftime", lambda _: "20250102-030405")
    names = [str(make_folder(None, "CartPole-v1", 7)) for _ in range(3)]
    first = "runs/CartPole-v1-7-20250102-030405"
    assert names == [first, first + "-2", first + "-3"]
    assert all(Path(name).is_dir() for name in names)


def test_a_given_folder_is_used_as_it_is(tmp_path):
    wanted = tmp_path / "some" / "where"
    assert make_folder(str(wanted), "CartPole-v1", 0) == wanted
    assert list(wanted.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused_and_keeps_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="already holds a run") as caught:
        make_folder(tmp_path, "CartPole-v1", 0)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_way_of_the_folder_is_named_in_one_line(tmp_path, inside):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file.*cannot be written") as caught:
        make_folder(tmp_path / "file" / inside, "CartPole-v1", 0)
    assert "\n" not in str(caught.value)


def test_a_folder_without_permission_is_refused_in_one_line(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ValueError, match=r"cannot be written \(permission denied\)"):
        make_folder(tmp_path, "CartPole-v1", 0)


def test_a_read_only_disk_is_refused_in_one_line(tmp_path, monkeypatch):
    refuse = mock.Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr(logger.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"^\S+: cannot be written \(read-only file system\)$"):
        make_folder(tmp_path, "CartPole-v1", 0)


def test_a_row_holds_the_step_and_the_values_given_and_nothing_else(tmp_path):
    with Logger(tmp_path, 100) as log:
        log.metrics(10, {"loss/actor": -1.23456789, "updates": 12345678})
        log.metrics(20, {"eval/return": 500.0})
    assert _rows_of(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss/actor": -1.23457, "updates": 12345678},
        {"step": 20, "eval/return": 500.0},
    ]


def test_a_row_can_be_read_while_the_run_goes_on(tmp_path):
    with Logger(tmp_path, 100) as log:
        log.metrics(10, {"loss": 1.0})
        assert _rows_of(tmp_path / "metrics.jsonl") == [{"step": 10, "loss": 1.0}]
        log.episodes([EPISODE, EPISODE | {"env": 0}])
        assert _rows_of(tmp_path / "scores.jsonl") == [EPISODE, EPISODE | {"env": 0}]


def test_a_second_logger_appends_to_the_rows_of_the_first(tmp_path):
    for step in (1, 2):
        with Logger(tmp_path, 100) as log:
            log.metrics(step, {})
    assert _rows_of(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named_and_leaves_no_part_of_a_row(tmp_path, value):
    with Logger(tmp_path, 100) as log:
        with pytest.raises(ValueError, match=f"'loss/critic' is {value}"):
            log.metrics(10, {"loss/actor": 1.0, "loss/critic": value})
        with pytest.raises(ValueError, match=f"'return' is {value}"):
            log.episodes([EPISODE, EPISODE | {"return": value}])
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "scores.jsonl").read_text() == ""


def test_no_metric_can_overwrite_the_step_of_its_row(tmp_path):
    with Logger(tmp_path, 100) as log, pytest.raises(ValueError, match="'step'"):
        log.metrics(10, {"step": 11.0})


def test_an_evaluation_or_five_seconds_bring_a_plain_line_and_nothing_else_does(tmp_path):
    lines = plain_output(tmp_path, [
        Progress(100, 1000, 1, elapsed=0.5),  # the first is printed
        Progress(200, 1000, 2, elapsed=1.0),
        Progress(300, 1000, 3, eval_return=9.0, best_eval=9.0, elapsed=1.5),  # an evaluation
        Progress(400, 1000, 4, eval_return=9.0, best_eval=9.0, elapsed=6.4),
        Progress(500, 1000, 5, eval_return=9.0, best_eval=9.0, elapsed=6.5),  # five seconds
        Progress(600, 1000, 6, eval_return=9.0, best_eval=9.0, elapsed=7.0),  # the last
    ])
    assert [line.split()[0] for line in lines] == ["100", "300", "500", "600"]


def test_the_last_plain_line_is_not_printed_twice(tmp_path):
    assert len(plain_output(tmp_path, [Progress(1000, 1000, 9)])) == 1
    assert plain_output(tmp_path, []) == []


def test_plain_lines_have_their_columns_in_the_same_places():
    unknown = logger.plain_line(Progress(512, 10240, 0, elapsed=3.2))
    known = logger.plain_line(
        Progress(10240, 10240, 1280, -500.0, -83.25, -1234.5, 130.4, 1050.2, 61.0, 0.0))
    assert len(unknown) == len(known) <= 112
    for word in ("steps", "eval", "best", "train", "updates/s", "left"):
        assert unknown.index(word) == known.index(word)
    numbers = "10,240 100% -500.0 -83.25 -1,234.5 130 1,050 1:01 0:00"
    assert set(numbers.split()) <= set(known.split())


def test_times_are_shown_as_a_clock_shows_them():
    shown = [logger._clock(seconds) for seconds in (None, 0.4, 59.6, 3600.0)]
    assert shown == ["-", "0:00", "1:00", "1:00:00"]


def test_a_pipe_gets_no_escape_codes_even_where_colour_is_forced(tmp_path):
    script = _start_script(tmp_path, subprocess.PIPE)
    text = script.communicate()[0].decode()
    assert script.returncode == 0
    assert "\x1b" not in text and "\r" not in text and text.isascii()
    assert text.startswith("compiling [bold] ...\n") and "12.50" in text
    assert text.count("\n") == 2


def test_a_terminal_gets_one_panel_with_every_number_and_the_line_above_it(tmp_path):
    text = terminal_output(tmp_path)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    last = plain[plain.rindex("╭"):]
    for part in ("50 / 100 steps", "50%", "12.50", "9.00", "updates/s", "20", "elapsed", "0:01"):
        assert part in last
    assert plain.index("compiling [bold] ...") < plain.rindex("╭")


def test_the_panel_fits_a_narrow_terminal_and_is_closed_after_an_error(tmp_path):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=44)
    with pytest.raises(KeyboardInterrupt), Logger(tmp_path, 1000, console) as log:
        log.show(Progress(500, 1000, 10))
        raise KeyboardInterrupt
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) == 44
    assert text.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again
