"""The run's folder and its two files of JSON lines."""

import errno
import json
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from utils.run import logger
from utils.run.logger import Logger, make_folder

EPISODE = {"step": 40, "env": 3, "return": 9.0, "length": 10}

def _rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_runs_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logger.time, "strftime", lambda _: "20250102-030405")
    names = [str(make_folder(None, "CartPole-v1", 7)) for _ in range(3)]
    first = "runs/CartPole-v1-7-20250102-030405"
    assert names == [first, first + "-2", first + "-3"]
    assert all(Path(name).is_dir() for name in names)


def test_a_given_folder_is_used_unchanged(tmp_path):
    wanted = tmp_path / "some" / "where"
    assert make_folder(str(wanted), "CartPole-v1", 0) == wanted
    assert list(wanted.iterdir()) == []


def test_a_folder_with_a_run_is_refused_and_left_unchanged(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="already contains a run") as caught:
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


def test_a_row_has_only_the_step_and_the_given_values(tmp_path):
    with Logger(tmp_path) as log:
        log.metrics(10, {"loss/actor": -1.23456789, "updates": 12345678})
        log.metrics(20, {"eval/return": 500.0})
    assert _rows_of(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss/actor": -1.23457, "updates": 12345678},
        {"step": 20, "eval/return": 500.0},
    ]


def test_a_row_can_be_read_during_the_run(tmp_path):
    with Logger(tmp_path) as log:
        log.metrics(10, {"loss": 1.0})
        assert _rows_of(tmp_path / "metrics.jsonl") == [{"step": 10, "loss": 1.0}]
        log.episodes([EPISODE, EPISODE | {"env": 0}])
        assert _rows_of(tmp_path / "scores.jsonl") == [EPISODE, EPISODE | {"env": 0}]


def test_a_second_logger_appends_to_the_rows_of_the_first(tmp_path):
    for step in (1, 2):
        with Logger(tmp_path) as log:
            log.metrics(step, {})
    assert _rows_of(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named_and_leaves_no_part_of_a_row(tmp_path, value):
    with Logger(tmp_path) as log:
        with pytest.raises(ValueError, match=f"'loss/critic' is {value}"):
            log.metrics(10, {"loss/actor": 1.0, "loss/critic": value})
        with pytest.raises(ValueError, match=f"'return' is {value}"):
            log.episodes([EPISODE, EPISODE | {"return": value}])
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "scores.jsonl").read_text() == ""


def test_no_metric_can_overwrite_the_step_of_its_row(tmp_path):
    with Logger(tmp_path) as log, pytest.raises(ValueError, match="'step'"):
        log.metrics(10, {"step": 11.0})
