"""What one update hands from function to function: the right rows, states, returns and keys."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_array_equal

import dreamer
import gymnax_wrappers
from utils.core import config
from utils.core.settings import Config
from utils.run import chunks

KEY, B, T = jax.random.key(0), 2, 3
QUICKLY = {"xla_backend_optimization_level": 0}  # most of the time is the compiler's


@pytest.fixture(scope="module")
def built():
    """A small agent for CartPole, and the shapes of its weights."""
    sizes = ["model.bins=15", f"replay.batch={B}", f"replay.length={T}", "learning.free_bits=0"]
    settings = config.load("dreamer.yaml", Config, ["debug"], sizes)
    return dreamer.build(settings, gymnax_wrappers.make("CartPole-v1"))


@pytest.fixture(scope="module")
def program(built):
    """The agent alone."""
    return built[0]


@pytest.fixture(scope="module")
def loop(program):
    """That agent, which has learned nothing, and an empty replay."""
    return dreamer.init(program, KEY)


@pytest.fixture(scope="module")
def lively(built):
    """Networks with weights that are random everywhere, in the last layers too."""
    (program, shapes), random = built, np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.array(random.normal(0.0, 0.3, leaf.shape), leaf.dtype), shapes)
    return nnx.merge(program.networks, params)


@pytest.fixture(scope="module")
def prediction_loss(program, lively):
    """batch -> L_pred of its states."""
    losses = jax.jit(lambda batch: dreamer.world_losses(lively, batch, KEY, program.config),
                     compiler_options=QUICKLY)
    return lambda batch: float(losses(batch)[0]["prediction"])


@pytest.fixture
def batch(program):
    """Rows [B, T + 1] of no episode in particular, in which none begins."""
    random, model, flags = np.random.default_rng(1), program.config.model, np.zeros((3, B, T + 1))
    return jax.tree.map(jnp.asarray, dreamer.Transition(
        random.normal(size=(B, T + 1, 4)), random.normal(size=(B, T + 1)), *flags.astype(bool),
        random.normal(size=(B, T + 1, 2)), random.normal(size=(B, T + 1, model.deter)),
        np.zeros((B, T + 1, model.latents), np.uint8)))


def test_an_agent_that_has_learned_nothing_expects_no_reward_and_no_value(program, loop):
    networks = dreamer.assemble(program, loop.agent.params)
    s, bins = jax.random.normal(KEY, (3, program.config.model.s_size)), dreamer.value_bins(15)
    assert_array_equal(dreamer.twohot_mean(networks.world.reward(s), bins), np.zeros(3))
    assert_array_equal(dreamer.twohot_mean(networks.critic(s), bins), np.zeros(3))


@pytest.mark.parametrize("column", ["x", "r", "is_terminal"])
def test_a_state_is_to_predict_its_own_row_and_row_0_is_none(column, batch, prediction_loss):
    usual, values = prediction_loss(batch), getattr(batch, column)
    first, last = (batch._replace(**{column: values.at[:, row].set(values[:, row] == 0)})
                   for row in (0, T))
    assert prediction_loss(first) == usual != prediction_loss(last)


def test_a_replayed_sequence_goes_on_from_the_state_that_was_stored(batch, prediction_loss):
    usual = prediction_loss(batch)
    assert prediction_loss(batch._replace(h=batch.h.at[:, 0].set(0.0))) != usual
    assert prediction_loss(batch._replace(z=batch.z.at[:, 0].set(1))) != usual
    assert prediction_loss(batch._replace(h=batch.h.at[:, 1:].set(0.0))) == usual


def test_the_critic_goes_on_in_the_replay_from_the_return_imagined_at_each_rows_own_state(
        program, loop, batch, monkeypatch):
    h = jnp.arange(B * T).reshape(B, T, 1) * 100.0  # each state is known by its number
    latent, handed = dreamer.Latent(h, jnp.zeros((B, T, 1, 1))), []
    monkeypatch.setattr(dreamer, "world_losses", lambda *_: ({}, latent, {}))
    monkeypatch.setattr(dreamer, "imagine", lambda networks, start, steps, key: start.h)
    monkeypatch.setattr(dreamer, "imagination_losses", lambda networks, frozen, imagined, *_: (
        {}, (imagined + jnp.arange(4), None), {}))  # the returns of four imagined steps
    monkeypatch.setattr(dreamer, "replay_critic_loss", lambda *given: handed.append(given) or 0.0)
    dreamer.agent_losses(program, loop.agent.params, loop.agent, batch, KEY)
    ((_, _, states, rows, bootstrap, _),) = handed
    assert_array_equal(bootstrap, h[..., 0])
    assert_array_equal(states.h, h)
    assert_array_equal(rows.x, batch.x[:, 1:])


def drawn(what, program, networks):
    """Latents [64, 8, S, K] that were observed, imagined or met in acting, of no preference."""
    model, world = program.config.model, networks.world
    nothing = dreamer.Latent(jnp.zeros((64, model.deter)),
                             jnp.zeros((64, model.latents, model.classes)))
    none = jnp.zeros((64, 9), bool)
    if what == "observe":
        rows = dreamer.Transition(x=jnp.zeros((64, 9, 4)), r=none, is_first=none, is_last=none,
                                  is_terminal=none, a=jnp.zeros((64, 9, 2)), h=none, z=none)
        return dreamer.observe(world, nothing, rows, KEY)[0].z
    if what == "imagine":
        s = dreamer.imagine(networks, nothing, 8, KEY).s[:, 1:, model.deter :]
        return s.reshape(64, 8, model.latents, model.classes)
    step = gymnax_wrappers.Step(jnp.zeros((64, 4)), *(none[:, 0],) * 4)
    acts = [dreamer.act(networks, step, nothing, jnp.zeros((64, 2)), key)[0].z
            for key in jax.random.split(KEY, 8)]
    return jnp.stack(acts, 1)


@pytest.mark.parametrize("what", ["observe", "imagine", "act"])
def test_every_latent_of_every_state_is_drawn_by_a_number_of_its_own(what, program, loop):
    networks = dreamer.assemble(program, jax.tree.map(jnp.zeros_like, loop.agent.params))
    z = np.asarray(drawn(what, program, networks).argmax(-1))
    classes = program.config.model.classes
    for axis in range(z.ndim):  # neighbours agree as often as chance makes them
        near, far = np.delete(z, 0, axis), np.delete(z, -1, axis)
        assert abs((near == far).mean() - 1 / classes) < 5 * 0.5 / near.size**0.5, axis


def test_every_environment_starts_in_a_state_of_its_own(program):
    x = dreamer.start_episodes(program, 6, KEY).timestep.x
    assert len(np.unique(x[:, 0])) == 6


def told(program, state, batch, key):
    """Instead of dreamer.train_step: the fresh state of a row shows the row's observation."""
    h = jnp.broadcast_to(1000.0 + batch.x[:, 1:, :1], (B, T, program.config.model.deter))
    model = program.config.model
    return state, dreamer.Latent(h, jnp.ones((B, T, model.latents, model.classes))), {}


def test_the_fresh_state_of_a_row_is_written_to_that_row(program, loop, monkeypatch):
    monkeypatch.setattr(dreamer, "train_step", told)
    rows, count = loop.replay.rows, 8
    x = rows.x.at[:, :count, 0].set(jnp.arange(1.0, count + 1.0))
    replay = loop.replay._replace(rows=rows._replace(x=x), written=jnp.int32(count))
    after = dreamer.update(program, loop._replace(replay=replay))[0].replay.rows
    fresh = after.h[..., 0] != 0.0
    assert 0 < fresh.sum() <= B * T
    assert_array_equal(after.h[fresh][:, 0], 1000.0 + after.x[fresh][:, 0])


def test_what_is_evaluated_and_kept_are_the_averaged_weights(monkeypatch):
    for name in ("placed", "own", "meet"):  # nothing is on a device here
        monkeypatch.setattr(chunks.parts, name, lambda *given: given[-1])
    settings = config.load("dreamer.yaml", Config, ["debug"])
    program = SimpleNamespace(config=settings, env=SimpleNamespace(on_host=False))
    agent = SimpleNamespace(params="those that play and learn", average="averaged")
    actor = SimpleNamespace(env=SimpleNamespace(fault=None))
    state = SimpleNamespace(agent=agent, actor=actor)
    session = SimpleNamespace(due=lambda steps: (True, False, False))
    (chunk,) = chunks.train_chunks(program, lambda state: (state, None, {}), state, session)
    assert chunk.params == "averaged"
