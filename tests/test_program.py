"""The program as a user runs it: a short real run, what it says and what it leaves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dreamer
from gymnax_wrappers import Step, make
from tests import pages, sharing
from utils.core import config
from utils.core.references import REFERENCES
from utils.core.settings import Config
from utils.run import arrays
from utils.study import runs

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "dreamer.yaml"
TIMES = ("time/",)  # names that begin so are measured by a clock


def _run(folder, *flags, cache=None):
    command, environment = [sys.executable, ROOT / "dreamer.py", *flags], dict(os.environ)
    if cache:  # the user's, instead of the one that tests share
        del environment["JAX_COMPILATION_CACHE_DIR"]
        environment["XDG_CACHE_HOME"] = str(cache)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept_in(cache):
    """The names of the programs in the user's cache folder."""
    return {path.name for path in (cache / "dreamer").glob("*/*-cache")}


@pytest.fixture(scope="module", autouse=True)
def _one_program():
    with sharing.one_program(draws=False):
        yield


class Finished(NamedTuple):
    """A debug run in an empty folder, as a user starts it first: what it printed, its folder."""

    done: subprocess.CompletedProcess
    run: Path
    cache: Path  # the user's cache folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A debug run in an empty folder."""
    folder, cache = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("cache")
    done = _run(folder, "--preset", "debug", "--seed", "3", cache=cache)
    assert [path.name for path in folder.iterdir()] == ["runs"]
    (run,) = (folder / "runs").iterdir()
    return Finished(done, run, cache)


def test_a_run_leaves_its_files_in_a_folder_of_its_own(finished):
    run = finished.run
    assert re.fullmatch(r"CartPole-v1-3-\d{8}-\d{6}", run.name)
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.yaml", "learning_curve.png", "metrics.jsonl", "scores.jsonl",
        "weights.npz"]
    with Image.open(run / "learning_curve.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300


def test_a_run_says_what_it_is_and_how_it_goes_in_plain_lines(finished):
    done, run, _ = finished
    first, *rest = done.stdout.splitlines()
    assert first.startswith("device") and "\x1b" not in done.stdout
    assert rest[0].startswith("environment  CartPole-v1: vector of 4 in, 2 discrete actions")
    assert re.match(r"parameters   [\d,]+: encoder [\d,]+ · dynamics", rest[1])
    assert rest[2].startswith("compiling")
    assert all(re.search(r"steps .*eval .*train .*updates/s .*left", line) for line in rest[3:-4])
    assert re.match(r" *96 steps +15% ", rest[3])  # those of the untrained policy come first
    pattern = r"score +([\d.]+) over 4 .* weights of step (\d+); (\d+) steps in \d+ s$"
    score, kept, steps = re.match(pattern, rest[-4]).groups()
    last = _rows(run / "metrics.jsonl")[-1]
    assert float(score) == round(last["charts/score_return"], 1)
    assert (int(kept), int(steps)) == (last["charts/score_step"], last["step"])
    assert f"runs/{run.name}" in rest[-3]
    assert [line.split()[-3:-1] for line in rest[-2:]] == [
        ["-m", "utils.watch"], ["-m", "utils.report"]]


def test_metrics_have_no_zero_rows_and_only_names_of_the_glossary(finished):
    run = finished.run
    *rows, last = _rows(run / "metrics.jsonl")
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] >= 640
    assert all(row["charts/updates"] > 0 and row["losses/reward"] > 0 for row in rows)
    glossary = {name for line in pages.block("metrics").splitlines() if line.startswith("| `")
                for name in re.findall(r"`([\w/]+)`", line.split("|")[1])}
    assert {name for row in [*rows, last] for name in row} == glossary


def test_the_last_row_scores_the_weights_of_the_best_evaluation(finished):
    run = finished.run
    *rows, last = _rows(run / "metrics.jsonl")
    found = {row["step"]: row["charts/eval_return"] for row in rows if "charts/eval_return" in row}
    assert len(found) > 1 and last["step"] == rows[-1]["step"]
    assert last["charts/score_step"] == max(found, key=lambda step: (found[step], step))
    assert last["charts/score_length"] == last["charts/score_return"] > 0


def test_scores_are_the_episodes_that_the_metrics_average(finished):
    run = finished.run
    scores, before = _rows(run / "scores.jsonl"), 0
    for row in _rows(run / "metrics.jsonl")[:-1]:  # the last row is the score
        new = [score for score in scores if before < score["step"] <= row["step"]]
        before = row["step"]
        for name in ("return", "length") if new else ():
            mean = np.mean([score[name] for score in new])
            assert row[f"charts/episodic_{name}"] == pytest.approx(mean, rel=1e-5)
        assert bool(new) == ("charts/episodic_return" in row)
    assert scores and scores[-1]["step"] <= before


def test_scores_have_one_row_for_each_episode_and_leave_none_out(finished):
    run = finished.run
    scores, envs = _rows(run / "scores.jsonl"), config.load(run / "config.yaml", Config).run.envs
    assert all(row["return"] == row["length"] > 0 for row in scores)  # CartPole pays 1 an action
    for env in range(envs):
        mine = [row for row in scores if row["env"] == env]
        played = np.cumsum([row["length"] + 1 for row in mine])  # and one row for the reset
        assert [row["step"] for row in mine] == (played * envs).tolist() != []


def test_the_weights_that_are_kept_are_those_of_the_best_evaluation(tmp_path, monkeypatch):
    seen = []  # the weights of each evaluation, of which the second shall be the best
    monkeypatch.setattr(dreamer, "ONE_SEED", dreamer.ONE_SEED._replace(
        evaluate=lambda program, params, key: (
            seen.append(arrays.flatten(params)) or jnp.full(4, len(seen) == 2), jnp.ones(4))))
    flags = ["--preset", "debug", "--set", "run.eval_every=1", "--logdir", str(tmp_path / "run")]
    assert dreamer.main(flags) == 0
    kept = arrays.load(tmp_path / "run" / "weights.npz")
    same = [jax.tree.all(jax.tree.map(np.array_equal, kept, params)) for params in seen]
    assert len(seen) > 3 and same == [False, True] + [False] * (len(seen) - 3) + [True]


def test_a_table_of_many_runs_has_the_score_the_curve_and_the_cost_of_this_one(finished):
    *rows, last = _rows(finished.run / "metrics.jsonl")
    found = runs.result(config.load(finished.run / "config.yaml", Config), finished.run)
    assert found["score"] == last["charts/score_return"] and found["steps"] == last["step"] >= 640
    assert found["curve"][-1] == [rows[-1]["step"], round(rows[-1]["charts/eval_return"], 4)]
    assert found["updates"] == rows[-1]["charts/updates"] and found["seconds"] > 0


def test_the_weights_of_a_run_go_back_into_the_networks(finished):
    run = finished.run
    settings = config.load(run / "config.yaml", Config)
    _, shapes = dreamer.build(settings, make(settings.run.env))
    params = arrays.unflatten(shapes, arrays.load(run / "weights.npz"))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert np.any(params["critic"]["out"]["kernel"][...])  # zero before the first update


def _told(run):
    """The rows of a run's metrics, without what a clock measured."""
    return [{name: value for name, value in row.items() if not name.startswith(TIMES)}
            for row in _rows(run / "metrics.jsonl")]


def test_the_same_seed_gives_the_same_metrics_though_all_is_compiled_anew(finished, tmp_path):
    run, again = finished.run, tmp_path / "again"
    assert dreamer.main(["--config", str(run / "config.yaml"), "--logdir", str(again)]) == 0
    assert _told(again) == _told(run)
    assert (again / "scores.jsonl").read_bytes() == (run / "scores.jsonl").read_bytes()


def test_another_seed_gives_other_metrics_and_a_second_start_compiles_nothing(finished, tmp_path):
    first = kept_in(finished.cache)
    saved = ["--config", finished.run / "config.yaml", "--seed", "4"]
    _run(tmp_path, *saved, "--logdir", "other", cache=finished.cache)
    large = ("jit_init-", "jit_rollout-", "jit_train_chunk-", "jit_evaluate-")
    assert all(any(name.startswith(one) for name in first) for one in large)
    assert kept_in(finished.cache) == first  # it had nothing to keep, however small
    assert _told(tmp_path / "other") != _told(finished.run)


@pytest.mark.slow
def test_compiled_in_full_the_same_seed_gives_the_same_metrics(tmp_path):
    for name in ("one", "other"):
        _run(tmp_path, "--preset", "debug", "--logdir", name, cache=tmp_path / f"cache-{name}")
    assert _told(tmp_path / "one") == _told(tmp_path / "other")


def test_help_lists_every_hyperparameter_with_its_value_and_the_papers(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        dreamer.main(["--config", str(SHIPPED), "--help", "--set", "model.deter=64"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    ours = config.load(SHIPPED, Config, sets=["model.deter=64"])
    for section, key, meaning, _ in config.rows(ours):
        (line,) = re.findall(rf"^{section}\.{key} .*$", said, re.MULTILINE)
        assert line.endswith(meaning)
    for line in (r"model\.deter +64 +8192", r"run\.envs +2 +16", r"run\.steps +20000 +-"):
        assert re.search(f"^{line} ", said, re.MULTILINE), line


def test_the_resolved_configuration_is_printed_without_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        dreamer.main(["--config", str(SHIPPED), "--print-config", "--preset", "size12m"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert left.value.code == 0 and [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]
    assert config.load("printed.yaml", Config) == config.load(SHIPPED, Config, ["size12m"])


class Painter:
    """A picture of 8 x 8 pixels and two continuous actions: what no Gymnax environment has."""

    name, solved, discrete, is_image = "Painter", None, False, True
    x_shape, x_dtype, action_size = (8, 8, 3), jnp.uint8, 2

    def reset(self, key):
        """A new picture of noise."""
        return jnp.int32(0), self._step(key, jnp.int32(0), 0.0)

    def step(self, key, state, action):
        """Pays for small actions; six rows make an episode."""
        t = (state + 1) % 6
        return t, self._step(key, t, jnp.where(t > 0, -jnp.square(action).sum(), 0.0))

    def _step(self, key, t, reward):
        picture = jax.random.randint(key, self.x_shape, 0, 256).astype(jnp.uint8)
        return Step(picture, jnp.float32(reward), t == 0, t == 5, jnp.zeros((), bool))


@pytest.mark.slow
@pytest.mark.parametrize("env", sorted(REFERENCES))
def test_every_environment_is_trained_for_a_few_hundred_steps(env, tmp_path):
    _run(tmp_path, "--env", env, "--preset", "debug", "--set", "run.eval_limit=50")
    (run,) = (tmp_path / "runs").iterdir()
    rows = _rows(run / "metrics.jsonl")
    assert rows[-1]["step"] >= 640 and "charts/score_return" in rows[-1]
    assert all(np.isfinite(list(row.values())).all() for row in rows)


SMALL = ["replay.batch=2", "replay.length=4", "replay.capacity=200", "learning.imagination=2",
         "run.train_ratio=8", "optimizer.warmup=0"]


def _small(env):
    """A small program for an environment."""
    settings = config.load(SHIPPED, Config, ["debug"], SMALL)
    return dreamer.build(settings, Painter() if env == "Painter" else make(env))[0]


# One of each kind: a vector and box actions, pixels on two axes, one whole number, pixels on three.
# A vector, an environment of the user's and worlds of the host are trained in the fast group (here,
# in test_user_env.py and test_gymnasium.py), and pixels have an update in test_fast_forms.py.
KINDS = ["Pendulum-v1", "Catch-bsuite", "FrozenLake-misc", "Painter"]


@pytest.mark.parametrize("env", KINDS)
def test_a_step_of_learning_fits_each_kind_of_observation_and_action(env):
    program = _small(env)
    loop = dreamer.init.eval_shape(program, jax.random.key(0))
    after, _, metrics = dreamer.train_chunk.eval_shape(program, loop, 2)
    assert jax.tree.map(_form, after) == jax.tree.map(_form, loop)
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {np.dtype("float32")}


def _form(leaf):
    return leaf.shape, leaf.dtype


@pytest.mark.slow
@pytest.mark.parametrize("env", KINDS)
def test_each_kind_of_observation_and_action_is_learned_from(env):
    program = _small(env)
    key = jax.random.key(0)
    loop, _ = dreamer.prefill(program, dreamer.init(program, key), 8)
    before = jax.tree.map(np.array, loop.agent.params)
    loop, _, metrics = dreamer.train_chunk(program, loop, 2)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
    moved = jax.tree.map(lambda old, new: np.any(old != np.asarray(new)), before, loop.agent.params)
    assert all(jax.tree.leaves(moved))
