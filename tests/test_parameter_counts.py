"""Every model size has the official agent's weights: their numbers, part by part, and shapes."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import dreamer
from utils.core.config import load
from utils.run.session import parameter_counts

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
ENVIRONMENTS = {
    "vec": SimpleNamespace(x_shape=(4,), is_image=False, discrete=True, action_size=2),
    "img": SimpleNamespace(x_shape=(64, 64, 3), is_image=True, discrete=True, action_size=6),
}
PARTS = {"encoder": "enc", "dynamics": "dyn", "decoder": "dec", "reward": "rew",
         "continue": "con", "actor": "pol", "critic": "val"}


def official_counts():
    """{(size, "vec" or "img"): its row of the file}."""
    rows = json.loads((GOLDEN / "param_counts.json").read_text())
    return {(row["size"], row["obs"]): row for row in rows}


def shapes_of(size, observation):
    """The shapes of all weights of this size; nothing is allocated."""
    config = load(ROOT / "dreamer.yaml", dreamer.Config, [size])
    return dreamer.build(config, ENVIRONMENTS[observation])[1]


def test_all_seven_sizes_are_recorded_for_both_kinds_of_observation():
    sizes = {f"size{size}m" for size in (1, 12, 25, 50, 100, 200, 400)}
    assert official_counts().keys() == {(size, kind) for size in sizes for kind in ENVIRONMENTS}


@pytest.mark.parametrize("size, observation", official_counts())
def test_each_part_has_the_official_number_of_weights(size, observation):
    official, shapes = official_counts()[size, observation], shapes_of(size, observation)
    counts = parameter_counts(shapes)
    assert counts == {part: official[name] for part, name in PARTS.items()}
    assert sum(counts.values()) == official["total"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == official["total"]
    assert official["slowval"] == counts["critic"]  # a copy, counted in neither total


@pytest.mark.parametrize("observation", ENVIRONMENTS)
def test_the_smallest_size_has_the_official_shapes(observation):
    entries = json.loads((GOLDEN / f"param_shapes_size1m_{observation}.json").read_text())
    official = [tuple(shape) for name, (shape, _) in entries.items()
                if name.split("/")[0] in PARTS.values()]
    ours = [leaf.shape for leaf in jax.tree.leaves(shapes_of("size1m", observation))]
    assert sorted(ours) == sorted(official)
