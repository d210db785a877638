"""utils.explain prints the quantities of one update as dreamer.py computes them, in its order."""

import re

import pytest
from numpy.testing import assert_allclose

import gymnax_wrappers
from tests import pages
from utils import explain
from utils.core import config
from utils.core.settings import Config

# The latents of an untrained agent are to be above the free bits: below, no gradient flows.
SETS = ["learning.free_bits=0", "model.bins=41"]


def _explained(env, preset):
    """(Explained, configuration, environment) of a small agent."""
    settings = explain.tiny(config.load("dreamer.yaml", Config, [preset], SETS))
    env = gymnax_wrappers.make(env)
    return explain.explain(settings, env), settings, env


@pytest.fixture(scope="module")
def cartpole():
    """One update of a small agent in CartPole."""
    return _explained("CartPole-v1", "debug")


def test_the_scaled_losses_add_up_to_the_total_loss(cartpole):
    (explained, settings, _) = cartpole
    parts = [getattr(settings.learning, key) * explained.losses[name]
             for name, key in explain.SCALES.items()]
    assert_allclose(sum(parts), explained.total, rtol=1e-5)


def test_the_losses_follow_from_the_printed_quantities(cartpole):
    (explained, _, _), values = cartpole, cartpole[0].values
    for name in ("decoder", "reward", "continue", "dynamics", "representation"):
        assert_allclose(values[name].mean(), explained.losses[name], rtol=1e-4)
    for name, loss in (("critic_loss", "critic"), ("actor_loss", "actor"),
                       ("replay_critic", "replay_critic")):
        assert_allclose(values[name].mean(), explained.losses[loss], rtol=1e-4)
    for name, metric in (("returns", "imagination/return"), ("values", "imagination/value"),
                         ("policy_entropy", "actor/entropy"),
                         ("prior_entropy", "latents/prior_entropy")):
        assert_allclose(values[name].mean(), explained.metrics[metric], rtol=1e-4)
    assert_allclose(values["return_range"][1], explained.metrics["actor/return_high"], rtol=1e-4)


def test_gradients_are_zero_exactly_where_the_table_has_a_dash(cartpole):
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in pages.block("gradients").splitlines()]
    for loss, *cells in rows[2:]:
        gradient_norms = cartpole[0].gradient_norms[loss.replace(" ", "_")]
        found = ["yes" if gradient_norms[module] else "-" for module in rows[0][1:]]
        assert (loss, found) == (loss, cells)


def test_the_update_changes_every_module(cartpole):
    changes = cartpole[0].changes
    assert list(explain.MODULES) == sorted(changes, key=explain.MODULES.index)
    assert all(0.0 < change < weights for weights, change in changes.values())


def test_the_text_names_every_quantity_in_the_order_of_the_computation(cartpole):
    said = explain.report(*cartpole)
    places = [said.index(title) for title in explain.QUANTITIES]
    assert places == sorted(places)
    rows = [f"{re.escape(symbol)} +{re.escape(meaning)} +\\[" for rows in
            explain.QUANTITIES.values() for symbol, meaning, _ in rows.values()]
    lines = [number for row in rows for number, line in enumerate(said.splitlines())
             if re.match(row, line)]
    assert lines == sorted(lines) and len(set(lines)) == len(cartpole[0].values)
    assert max(len(line) for line in said.splitlines()) <= 110


def test_a_letter_has_one_size_in_all_shapes(cartpole):
    said, sizes = explain.report(*cartpole), {}
    for shape in re.findall(r"\[([^\]]*\d)\]", said):
        for letter, size in re.findall(r"([A-Z](?:[+-]1)?) (\d+)", shape):
            assert sizes.setdefault(letter, size) == size, letter
    assert (sizes["B"], sizes["T"], sizes["N"], sizes["T+1"]) == ("3", "5", "15", "6")


def test_minimum_mean_and_maximum_are_those_of_the_quantity(cartpole):
    (line,) = re.findall(r"^R\^λ_t +λ-returns +\[.*\] +(.*)$", explain.report(*cartpole), re.M)
    returns = cartpole[0].values["returns"]
    numbers = [float(word) for word in line.split()]
    assert_allclose(numbers, [returns.min(), returns.mean(), returns.max()], rtol=1e-2)


@pytest.mark.parametrize("flags, said", [
    (["--seeds", "2"], "unrecognized arguments: --seeds 2"),
    (["--env", "CartPole"], "did you mean CartPole-v1"),
    (["--set", "learning.eat=1"], "did you mean 'eta'?"),
])
def test_a_mistake_in_the_flags_gets_one_line(flags, said, capsys):
    assert explain.main(flags) == 2
    found = capsys.readouterr()
    assert said in found.err and found.err.count("\n") == 1 and found.out == ""


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1", "Catch-bsuite", "FrozenLake-misc"])
def test_every_kind_of_environment_is_explained(env, capsys):
    assert explain.main(["--env", env, "--preset", "debug"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(env) and "nan" not in said and "inf" not in said
