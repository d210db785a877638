"""What the host remembers of a run: which evaluation was the best, and what its weights score."""

import json

import numpy as np
import pytest

from utils.diary import Diary, evaluation
from utils.logger import Logger


@pytest.fixture
def diary(tmp_path):
    """A diary of 40 steps, solved at 5, that writes to a folder."""
    with Logger(tmp_path, 40) as logger:
        yield Diary(logger, 40, 5.0, began=0.0)


def _evaluated(diary, value):
    diary.episodes(10, [])
    return diary.chunk(1, {"losses/actor": 1.0, "charts/eval_return": value})


def test_an_evaluation_is_the_best_if_none_before_it_was_better(diary):
    assert [_evaluated(diary, value) for value in (3.0, 7.0, 7.0, 6.0)] == [True, True, True, False]
    assert (diary.best, diary.best_step, diary.score) == (7.0, 30, 6.0)


def test_a_chunk_without_an_evaluation_is_never_the_best(diary):
    diary.episodes(10, [])
    assert not diary.chunk(1, {"losses/actor": 1.0})
    assert diary.best is None


def test_the_last_row_and_the_last_line_hold_the_score_and_the_step_of_the_kept_weights(
        diary, tmp_path):
    for value in (7.0, 6.0):
        _evaluated(diary, value)
    diary.end(evaluation(np.array([4.0, 8.0]), np.array([4, 8]), "score"))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    del last["time/elapsed"]
    assert last == {
        "step": 20, "charts/score_return": 6.0, "charts/score_length": 6.0,
        "charts/score_interval": pytest.approx(1.96 * 2 / 2**0.5), "charts/score_step": 10}
    said = diary.summary(2, tmp_path)
    assert said.startswith("score        6.0 over 2 fresh episodes, weights of step 10; 20 steps")


def test_it_is_said_once_that_an_environment_is_solved(diary, capsys):
    for value in (4.0, 5.0, 4.0, 6.0):
        _evaluated(diary, value)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("solved")]
    assert len(said) == 1 and "evaluation 5.0 (threshold 5) at 20 steps" in said[0]
