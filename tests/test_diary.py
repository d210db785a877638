"""The host's state of a run: the best evaluation, and the score of its weights."""

import json
import time

import numpy as np
import pytest

from utils.run.diary import Diary, evaluation_metrics
from utils.run.display import Display, Progress
from utils.run.logger import Logger


@pytest.fixture
def diary(tmp_path):
    """A diary of 40 steps, solved at 5, that writes to a folder."""
    with Logger(tmp_path) as logger, Display("run", Progress(0, 40, 0)) as display:
        yield Diary(logger, display, 40, 5.0, began=0.0)


def _evaluated(diary, value):
    diary.episodes(10, [])
    return diary.chunk(1, {"losses/actor": 1.0, "charts/eval_return": value})


def test_an_evaluation_is_the_best_if_no_earlier_one_was_better(diary):
    assert [_evaluated(diary, value) for value in (3.0, 7.0, 7.0, 6.0)] == [True, True, True, False]
    assert (diary.best, diary.best_step, diary.score) == (7.0, 30, 6.0)


def test_a_chunk_without_an_evaluation_is_never_the_best(diary):
    diary.episodes(10, [])
    assert not diary.chunk(1, {"losses/actor": 1.0})
    assert diary.best is None


def test_the_last_row_and_the_last_line_have_the_score_and_the_step_of_the_best_weights(
        diary, tmp_path):
    for value in (7.0, 6.0):
        _evaluated(diary, value)
    diary.end(evaluation_metrics(np.array([4.0, 8.0]), np.array([4, 8]), "score"))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    del last["time/elapsed"]
    assert last == {
        "step": 20, "charts/score_return": 6.0, "charts/score_length": 6.0,
        "charts/score_interval": pytest.approx(1.96 * 2 / 2**0.5), "charts/score_step": 10}
    said = diary.summary(2)
    assert said == "6.0 over 2 fresh episodes, weights of step 10"


def test_solving_an_environment_is_reported_once(diary, capsys):
    for value in (4.0, 5.0, 4.0, 6.0):
        _evaluated(diary, value)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("solved")]
    assert len(said) == 1 and "evaluation 5.0 (threshold 5) at 20 steps" in said[0]


def test_the_first_quantity_that_is_not_finite_is_named_with_its_update_and_nothing_is_written(
        diary, tmp_path):
    _evaluated(diary, 7.0)
    bad = {"losses/actor": np.array([[1.0, 1.0], [np.nan, 1.0]]),
           "actor/entropy": np.array([[1.0, 1.0], [np.inf, np.inf]]),
           "losses/decoder": np.array([[1.0, 1.0], [1.0, np.nan]])}
    with pytest.raises(FloatingPointError) as error:
        diary.check(10, bad)
    assert str(error.value) == "actor/entropy is inf in update 4, before step 20"
    diary.check(10, {"losses/actor": np.ones((2, 2))})
    with pytest.raises(FloatingPointError, match="return of an episode is not finite, before ste"):
        diary.episodes(10, [{"step": 8, "env": 0, "return": np.nan, "length": 3}])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == diary.updates == 1
    assert (tmp_path / "scores.jsonl").read_text() == ""


def test_a_row_has_the_mean_over_all_updates_of_its_chunk(diary, tmp_path):
    diary.chunk(4, {"losses/actor": np.arange(4.0).reshape(2, 2)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["losses/actor"] == 1.5


def test_a_restored_diary_continues_like_the_saved_one(diary, tmp_path):
    diary.episodes(10, [{"step": 8, "env": 0, "return": 3.0, "length": 3}])
    _evaluated(diary, 7.0)
    notes = json.loads(json.dumps(diary.remember()))
    (tmp_path / "other").mkdir()
    with Logger(tmp_path / "other") as logger:
        other = Diary(logger, diary.display, 40, 5.0, began=time.perf_counter())
        other.recall(notes)
        for one in (diary, other):
            assert not _evaluated(one, 6.0) and one.best_step == 20
        assert diary.remember() | {"elapsed": 0} == other.remember() | {"elapsed": 0}
        assert other.remember()["elapsed"] >= notes["elapsed"]
