"""Several seeds in one compiled program: each is what it would be alone, to rounding."""

import json
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
from gymnax_wrappers import make
from utils.core import config
from utils.core.settings import Config

ROOT = Path(__file__).parent.parent
SEEDS = 3


class Lesson(NamedTuple):
    """An agent that has filled its replay, the same one after two rounds, and what they left."""

    before: dreamer.Loop
    after: dreamer.Loop
    finished: dreamer.Finished
    metrics: dict
    scores: tuple  # of the weights before


def _lesson(functions, program, key):
    begin, prefill, learn_on, score = functions
    filled, _ = prefill(program, begin(program, key), 48)
    before = jax.tree.map(jnp.copy, filled)
    learned = learn_on(program, filled, 2)  # rounds of one update; the first has rate 0
    scores = score(program, before.agent.params, key)
    return jax.tree.map(_plain, Lesson(before, *learned, scores))


def _difference(one, other):
    """The largest difference of two trees of arrays."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float))))
               for a, b in pairs)


def test_side_by_side_each_seed_is_what_it_is_alone():
    settings = config.load(ROOT / "dreamer.yaml", Config, ["debug"], ["run.devices=2"])
    program, _ = dreamer.build(settings, make(settings.run.env))
    keys = jax.random.split(jax.random.key(8), SEEDS)
    together = _lesson(dreamer.SEVERAL, program, keys)
    for n in (0, SEEDS - 1):
        mine, alone = jax.tree.map(lambda leaf, n=n: leaf[n], together), _lesson(
            dreamer.ONE, program, keys[n])
        assert _difference(mine.before, alone.before) < 1e-5
        assert _difference((mine.finished, mine.scores), (alone.finished, alone.scores)) == 0.0
        # two updates, whose sums are added in another order: to rounding (on one processor less
        # than one, on another 1.6 thousandths of what was learned)
        learned = _difference(alone.after.agent.params, alone.before.agent.params)
        assert _difference(mine.after.agent.params, alone.after.agent.params) < 1e-2 * learned
        assert _difference(mine.after.replay, alone.after.replay) < 1e-5
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(mine.metrics[name], values, rtol=1e-3, atol=1e-5)


def _plain(leaf):
    """Random keys as numbers."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def begin_several(folder, _):
    """Train several seeds: the folder of their runs, and what was printed."""
    flags = ["--preset", "debug", "--seed", "4", "--seeds", str(SEEDS)]
    return folder / "run", _run(*flags, "--logdir", folder / "run")


@pytest.fixture(scope="module")
def several(begun):
    """What `--seeds` leaves, and what it printed."""
    return begun("several")


def _run(*flags):
    done = subprocess.run([sys.executable, ROOT / "dreamer.py", *flags], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_seed_leaves_a_whole_run_of_its_own_and_all_one_picture(several):
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
        assert f"{one}/" in said
    assert len({row["charts/score_length"] for row in ends}) > 1  # they are different agents
    assert "seeds        3 agents side by side, shown as means" in said


def test_the_numbers_shown_are_the_means_of_the_seeds(several):
    run, said = several
    last = [line for line in said.splitlines() if "steps 100%" in line][-1]
    found = [[row["charts/eval_return"] for row in _rows(run / f"seed-{seed}" / "metrics.jsonl")
              if "charts/eval_return" in row][-1] for seed in (4, 5, 6)]
    assert float(last.split("eval")[1].split()[0]) == pytest.approx(np.mean(found), abs=0.05)


def test_one_of_the_seeds_goes_on_alone(several):
    run, _ = several
    one = run / "seed-5"
    before = _rows(one / "metrics.jsonl")
    said = _run("--resume", one, "--steps", "800")
    after = _rows(one / "metrics.jsonl")
    assert after[:len(before) - 1] == before[:-1] and after[-1]["step"] >= 800
    assert f"resuming     {one} from step" in said


def test_who_asks_for_all_of_them_at_once_is_told_their_names(several, capsys):
    assert dreamer.main(["--resume", str(several[0])]) == 2
    assert "those inside it: seed-4, seed-5, seed-6\n" in capsys.readouterr().err


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
