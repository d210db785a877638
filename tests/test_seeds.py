"""Several seeds in one compiled program: each equals a run of its own, up to rounding."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

import dreamer
from gymnax_wrappers import make
from tests import sharing
from utils.core import config
from utils.core.settings import Config

ROOT = Path(__file__).parent.parent
SEEDS = 3
# Chunks of two rounds, as in the first test, so that all tests share its compiled program.
SMALL = ["run.devices=2", "run.envs=4", "run.train_ratio=8", "run.chunk=16", "run.steps=320",
         "run.eval_every=160"]


class Lesson(NamedTuple):
    """An agent after the prefill, the same one after two rounds, and the results of both."""

    before: dreamer.RunnerState
    after: dreamer.RunnerState
    stats: dreamer.EpisodeStats
    metrics: dict
    scores: tuple  # of the weights before


def _lesson(functions, program, key):
    begin, prefill, learn_on, score = functions
    filled, _ = prefill(program, begin(program, key), 48)
    scores = score(program, filled.agent.params, key)
    before = _plain(filled)
    learned = learn_on(program, filled, 2)  # rounds of one update; the first has rate 0
    return Lesson(before, *_plain((*learned, scores)))


def _difference(one, other):
    """The largest difference of two trees of arrays."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float))))
               for a, b in pairs)


def test_each_seed_trains_in_parallel_like_alone():
    settings = config.load(ROOT / "dreamer.yaml", Config, ["debug"], SMALL)
    program, _ = dreamer.build(settings, make(settings.run.env))
    keys = jax.random.split(jax.random.key(8), SEEDS)
    together = _lesson(dreamer.SEVERAL_SEEDS, program, keys)
    for n in (0, SEEDS - 1):
        mine, alone = jax.tree.map(lambda leaf, n=n: leaf[n], together), _lesson(
            dreamer.ONE_SEED, program, keys[n])
        assert _difference(mine.before, alone.before) < 1e-5
        assert _difference((mine.stats, mine.scores), (alone.stats, alone.scores)) == 0.0
        # two updates, whose sums are added in another order: to rounding (on one processor less
        # than one, on another 1.6 thousandths of what was learned)
        learned = _difference(alone.after.agent.params, alone.before.agent.params)
        assert _difference(mine.after.agent.params, alone.after.agent.params) < 1e-2 * learned
        assert _difference(mine.after.replay, alone.after.replay) < 1e-5
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(mine.metrics[name], values, rtol=1e-3, atol=1e-5)


def _plain(tree):
    """A tree of arrays, copied to numpy; random keys as numbers."""
    return jax.tree.map(lambda leaf: np.array(_numbers(leaf)), tree)


def _numbers(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


@pytest.fixture(scope="module", autouse=True)
def _one_program():
    with sharing.one_program():
        yield


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The files and the output of `--seeds`."""
    run, said = tmp_path_factory.mktemp("several") / "run", io.StringIO()
    sets = [word for one in SMALL for word in ("--set", one)]
    with redirect_stdout(said):
        assert dreamer.main(["--preset", "debug", "--seed", "4", "--seeds", str(SEEDS), *sets,
                             "--logdir", str(run)]) == 0
    return run, said.getvalue()


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_seed_leaves_a_complete_run_and_all_seeds_one_plot(several):
    run, said = several
    assert sorted(path.name for path in run.iterdir()) == [
        "learning_curve.png", "seed-4", "seed-5", "seed-6"]
    with Image.open(run / "learning_curve.png") as picture:
        assert min(picture.size) > 300
    ends = []
    for seed in (4, 5, 6):
        one = run / f"seed-{seed}"
        assert {"checkpoints", "config.yaml", "learning_curve.png", "metrics.jsonl",
                "scores.jsonl", "weights.npz"} == {path.name for path in one.iterdir()}
        assert config.load(one / "config.yaml", Config).run.seed == seed
        ends.append(_rows(one / "metrics.jsonl")[-1])
        assert f"score        seed {seed}: " in said
    assert len({row["charts/score_length"] for row in ends}) > 1  # they are different agents
    assert "seeds        3 agents in parallel, shown as means" in said


def test_the_numbers_shown_are_the_means_of_the_seeds(several):
    run, said = several
    last = [line for line in said.splitlines() if "steps 100%" in line][-1]
    found = [[row["charts/eval_return"] for row in _rows(run / f"seed-{seed}" / "metrics.jsonl")
              if "charts/eval_return" in row][-1] for seed in (4, 5, 6)]
    assert float(last.split("eval")[1].split()[0]) == pytest.approx(np.mean(found), abs=0.05)


@pytest.mark.slow
def test_one_of_the_seeds_goes_on_alone(several, capsys):
    run, _ = several
    one = run / "seed-5"
    before = _rows(one / "metrics.jsonl")
    assert dreamer.main(["--resume", str(one), "--steps", "400"]) == 0
    said = capsys.readouterr().out
    after = _rows(one / "metrics.jsonl")
    assert after[:len(before) - 1] == before[:-1] and after[-1]["step"] >= 400
    assert f"resuming     {one} from step" in said


def test_resuming_all_seeds_at_once_is_refused_with_the_names_of_their_runs(several, capsys):
    assert dreamer.main(["--resume", str(several[0])]) == 2
    assert "runs inside it: seed-4, seed-5, seed-6\n" in capsys.readouterr().err


@pytest.mark.parametrize("flags, said", [
    (["--seeds", "0"], "--seeds: expected a whole number from 1"),
    (["--seeds", "two"], "found 'two'"),
    (["--seeds", "2", "--resume", "RUN"], "--seeds: cannot be used with --resume"),
    (["--seed", "4294967295", "--seeds", "2"], "from 1 to 1, found '2'"),
])
def test_an_impossible_number_of_seeds_gets_one_line(flags, said, several, capsys):
    one = str(several[0] / "seed-4")
    assert dreamer.main([one if flag == "RUN" else flag for flag in flags]) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1
