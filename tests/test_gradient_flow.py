"""Which loss teaches which network: each cell of docs/equations.md, by taking the gradients."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dreamer
import gymnax_wrappers
from tests import pages
from utils.core import config
from utils.core.devices import on_one_device
from utils.core.settings import Config

# Prediction is the sum of the three rows below it. Both KL losses reach encoder and posterior: the
# representation loss directly, the dynamics loss (it holds the posterior fixed) through time alone,
# because h_t was made from z_{t-1}, a sample with a straight-through gradient.
B, T = 3, 5


def table():
    """The table as {row: {column: cell}}."""
    rows = pages.block("gradients").splitlines()
    lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name: dict(zip(lines[0][1:], cells)) for name, *cells in lines[2:]}


def without(table, *names):
    """The parsed table with no gradient anywhere in some rows."""
    return {name: dict.fromkeys(cells, "-") if name in names else cells
            for name, cells in table.items()}


def random_batch(random, env, model):
    """Rows of no episode in particular; one episode ends and one begins in the middle."""
    shape, flags = (B, T + 1), np.zeros((3, B, T + 1), bool)
    flags[0, 0, 3] = flags[1, 0, 2] = flags[2, 0, 2] = True
    return dreamer.Transition(
        random.normal(size=(*shape, *env.x_shape)), random.normal(size=shape), *flags,
        np.eye(env.action_size)[random.integers(env.action_size, size=shape)],
        random.normal(size=(*shape, model.deter)),
        random.integers(model.classes, size=(*shape, model.latents)))


def every_loss(program, inputs, free_bits, taught):
    """All losses by the names of the table, as a function of what a gradient might reach."""
    params, slow_critic, return_range = taught
    learning = dataclasses.replace(program.config.learning, free_bits=free_bits)
    program = dataclasses.replace(
        program, config=dataclasses.replace(program.config, learning=learning))
    state = dreamer.AgentState(params=params, slow_critic=slow_critic, average=None,
                               opt_state=None, return_range=return_range, step=0)
    losses, aux = on_one_device(partial(dreamer.agent_losses, program))(params, state, *inputs)
    parts = {name: aux.metrics[f"losses/{name}"] for name in ("decoder", "reward", "continue")}
    return {name.replace("_", " "): loss for name, loss in (losses | parts).items()}


@pytest.fixture(scope="module")
def steepest():
    """{free bits: {loss: largest slope of each tensor of (weights, slow critic, range)}}."""
    settings = config.load("dreamer.yaml", Config, ["debug"], ["model.bins=15"])
    env, random = gymnax_wrappers.make("CartPole-v1"), np.random.default_rng(0)
    program, shapes = dreamer.build(settings, env)
    # random and not zero, the heads' last layers neither: there a gradient would stop unseen
    params, slow_critic = (
        jax.tree.map(lambda leaf: jnp.array(random.normal(0.0, 0.3, leaf.shape), leaf.dtype), tree)
        for tree in (shapes, shapes["critic"]))
    batch = jax.tree.map(jnp.asarray, random_batch(random, env, settings.model))
    losses = partial(every_loss, program, (batch, jax.random.key(0)))
    jacobian = jax.jit(jax.jacrev(losses, 1))
    taught = (params, slow_critic, jnp.array([-1.0, 2.0]))
    return {free_bits: jax.tree.map(lambda slope: np.abs(slope).max(), jacobian(free_bits, taught))
            for free_bits in (0.0, 1e6)}


def cell(slopes):
    """Whether a gradient reaches all tensors of a network, none, or (always wrong) a part."""
    slopes = np.array(jax.tree.leaves(slopes))
    assert len(slopes) and np.isfinite(slopes).all()
    return "yes" if slopes.all() else "in part" if slopes.any() else "-"


def measured(slopes):
    """What was measured, in the form of the parsed table."""
    found = {}
    for loss, (params, _, _) in slopes.items():
        world = params["world"]
        networks = {
            "encoder": world["encoder"], "sequence": world["sequence"],
            "posterior": world["posterior"], "prior": world["prior"], "decoder": world["decoder"],
            "reward": world["reward"], "continue": world["continue_"],
            "actor": params["actor"], "critic": params["critic"]}
        assert len(jax.tree.leaves(networks)) == len(jax.tree.leaves(params))  # none forgotten
        found[loss] = {name: cell(network) for name, network in networks.items()}
    return found


@pytest.mark.agent_losses
def test_every_loss_teaches_exactly_the_networks_that_the_table_says(steepest):
    assert measured(steepest[0.0]) == table()


@pytest.mark.agent_losses
def test_below_the_free_bits_the_two_kl_losses_teach_nothing_and_the_rest_as_before(steepest):
    expected = without(table(), "dynamics", "representation")
    assert measured(steepest[1e6]) == expected


@pytest.mark.agent_losses
def test_no_loss_teaches_the_slow_critic_or_the_return_range(steepest):
    for loss, (_, slow_critic, return_range) in steepest[0.0].items():
        assert (loss, cell(slow_critic), cell(return_range)) == (loss, "-", "-")
