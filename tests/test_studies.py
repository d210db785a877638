"""What a report asks an agent: fresh episodes, dreams from them, and how far they are apart."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import dreamer
import gymnax_wrappers
from utils.core import config
from utils.core.settings import Config
from utils.pictures import measures, rollouts, studies

ENVS, ROWS, STEPS = 8, 230, 5


@pytest.fixture(scope="module")
def material():
    """Episodes of an untrained agent in Pendulum, 201 rows each, and what it says of them."""
    settings = config.load("dreamer.yaml", Config, ["debug"], ["run.env=Pendulum-v1"])
    env = gymnax_wrappers.make("Pendulum-v1")
    program, _ = dreamer.build(settings, env)
    params = dreamer.init(program, jax.random.key(0)).agent.params
    played = jax.device_get(rollouts.play(program, params, (ENVS, ROWS), jax.random.key(1)))
    agent = SimpleNamespace(program=program, params=params, env=env, config=settings)
    scale = measures.importance(played.rows.x)
    return studies.seen_by(studies.Material(agent, params, played, None, scale), params)


def test_played_rows_are_whole_episodes_one_after_the_other(material):
    rows, t = material.played.rows, material.played.t
    assert rows.r.shape == (ENVS, ROWS) and rows.is_first[:, 0].all()
    np.testing.assert_array_equal(t[:, :201], np.tile(np.arange(201), (ENVS, 1)))
    assert rows.is_last[:, 200].all() and rows.is_first[:, 201].all() and not t[:, 201].any()
    assert not rows.is_terminal.any()


def test_chance_acts_first_in_half_of_the_environments_and_never_in_the_others(material):
    is_random, t = material.played.is_random, material.played.t
    assert not is_random[: ENVS // 2].any()
    counts = np.linspace(1, rollouts.RANDOM_ACTIONS, ENVS - ENVS // 2).round()
    np.testing.assert_array_equal(is_random[ENVS // 2 :], t[ENVS // 2 :] < counts[:, None])


def test_random_actions_are_spread_over_all_that_are_possible(material):
    env, key = material.agent.env, jax.random.key(0)
    drawn = rollouts._random_actions(env, key, 4000)
    assert abs(drawn).max() <= 1.0 and drawn.std() == pytest.approx(3**-0.5, abs=0.02)
    classes = SimpleNamespace(discrete=True, action_size=3)
    drawn = rollouts._random_actions(classes, key, 4000)
    assert_allclose(drawn.mean(0), 1 / 3, atol=0.03)
    assert (drawn.sum(1) == 1.0).all()


def test_a_state_knows_nothing_of_the_episode_before(material):
    h, first = material.said.latent.h, material.played.t == 0
    assert_allclose(h[first], np.broadcast_to(h[0, 0], h[first].shape), atol=1e-6)
    assert first.sum() == 2 * ENVS and np.ptp(h[~first], 0).max() > 0.1
    assert ((0.0 <= material.said.c) & (material.said.c <= 1.0)).all()


def _start(material):
    return jax.tree.map(lambda x: jnp.asarray(x[:, 3]), material.said.latent)


def test_a_dream_is_the_one_that_the_agent_is_trained_in(material):
    agent, start, key = material.agent, _start(material), jax.random.key(2)
    networks = dreamer.nnx.merge(agent.program.networks, agent.params)
    dream = dreamer.dream(networks, start, STEPS, key)
    bins = dreamer.value_bins(agent.config.model.bins)
    r = dreamer.twohot_mean(networks.world.reward(dream.s), bins)[:, 1:]
    c = jax.nn.sigmoid(networks.world.continue_(dream.s)[:, 1:, 0])
    alive = jnp.cumprod(jnp.minimum(1.0, c / (1.0 - 1.0 / agent.config.learning.horizon)), 1)
    keys = jax.random.split(key, STEPS)
    for actions in (None, dream.a):  # the policy's own, or the same ones given
        found = rollouts.imagine(agent.program, agent.params, start, actions, 1, keys)
        assert found.x.shape == (ENVS, STEPS, 3) and found.dreams.shape == (1, STEPS, 3)
        assert_allclose(found.alive, alive, atol=1e-5)
        before = jnp.concatenate([jnp.ones((ENVS, 1)), alive[:, :-1]], 1)
        assert_allclose(found.r, before * r, atol=1e-5)
        assert_allclose(found.x[0], found.dreams[0], atol=1e-5)


def test_a_real_episode_goes_on_from_the_row_where_it_was_left(material):
    agent, places = material.agent, (np.array([0, 2, 5]), np.array([0, 7, 210]))
    player = rollouts.player_at(material.played, material.said, places, 2)
    keys = jax.random.split(jax.random.key(4), 3)
    rows = jax.device_get(rollouts.play_on(agent.program, agent.params, player, keys))
    assert rows.x.shape == (6, 3, 3)
    assert_allclose(rows.x[::2, 0], material.played.rows.x[places], atol=1e-6)
    states = jax.tree.map(lambda x: x[places], material.played.env)
    after, _ = jax.vmap(agent.env.step)(jax.random.split(keys[0], 3), states, rows.a[::2, 0])
    assert_allclose(rows.x[::2, 1, 2], np.squeeze(after.inner.theta_dot), atol=1e-5)


def test_an_open_loop_begins_where_the_episode_does_and_shows_the_liveliest(material):
    found, rows = studies.open_loop(material), material.played.rows
    assert found.context == 5 and found.true.shape == (50, 3)
    assert found.dreams.shape == (studies.SAMPLES, 45, 3)
    moved = [measures.squared_error(x[0], x, material.scale).sum() for x in rows.x[:, :50]]
    assert_allclose(found.true, rows.x[np.argmax(moved), :50])
    assert all(len(values) == 45 and np.isfinite(values).all() for values in found.curves.values())


def _episodes_of(*lengths):
    """Rows of environments that play episodes of these lengths, all the same number of rows."""
    first = [np.isin(np.arange(sum(part)), np.cumsum([0, *part])) for part in lengths]
    return SimpleNamespace(is_first=np.array(first), r=np.zeros((len(first), sum(lengths[0]))))


def test_windows_begin_with_episodes_and_are_as_long_as_the_longest():
    rows = _episodes_of((3, 12, 15), (10, 20))
    context, size, whole, others = studies._beginnings(rows)
    assert (context, size) == (2, 3), "so long that all five reach it"
    for env, first, length in [*whole, *others]:
        assert rows.is_first[env, first] and length >= size
    with pytest.raises(studies.NothingToShow, match="no episode has two rows"):
        studies._beginnings(_episodes_of((1,) * 5, (1,) * 5))


def test_what_is_shown_of_an_open_loop_is_one_episode_however_many_short_ones_there_are():
    short = _episodes_of(*[(20,) * 40] * 31, (60,) * 13 + (20,))
    _, size, whole, others = studies._beginnings(short)
    assert size == 50 and (whole[:, 2] == 60).all() and (others[:, 2] == 20).mean() > 0.9
    envs, places = studies._places(short, whole, size)
    assert not short.is_first[envs[:, 1:], places[:, 1:]].any()


def _compared(alive, x=0.0):
    """Errors of a dream of one start, with 3 steps: the world ends at step 2 in all episodes."""
    copies = studies.REAL
    real = SimpleNamespace(
        x=np.full((1, copies, 4, 1), 2.0), r=np.ones((1, copies, 4)),
        is_last=np.array([[[0, 0, 1, 0]] * copies], bool),
        is_terminal=np.array([[[0, 0, 1, 0]] * copies], bool))
    real = dreamer.Row(real.x, real.r, real.is_last, real.is_last, real.is_terminal, real.r,
                       real.r, real.r)
    rows = SimpleNamespace(x=np.ones((1, 2, 1)), r=np.ones((1, 2)),
                           is_first=np.array([[True, False]]), is_terminal=np.zeros((1, 2), bool))
    material = SimpleNamespace(played=SimpleNamespace(rows=rows), scale=np.ones(1))
    dream = rollouts.Imagined(np.full((1, 3, 1), x), np.array([[1.0, 1.0, 0.0]]),
                              np.array([alive]), None, None)
    return studies._compared(material, (np.zeros(1, int), np.zeros(1, int)), real, dream)


def test_nothing_is_asked_of_a_dream_after_the_end_but_that_it_ended():
    observation, reward, going_on = _compared([1.0, 0.0, 0.0], x=2.0).values()
    assert_allclose(observation["dream"], [0, 0, np.nan])
    assert_allclose(observation["no change"], [1, 1, np.nan])
    assert_allclose(reward["dream"], 0.0)
    assert_allclose(reward["no change"], [0, 0, 1])
    assert_allclose(going_on["dream"], 0.0)
    assert_allclose(going_on["no change"], [0, 1, 1])
    for curves in (observation, reward, going_on):  # all real episodes are alike here
        assert_allclose(curves["other real episodes"], np.where(np.isnan(curves["dream"]),
                                                                np.nan, 0.0))


def test_a_dream_that_goes_on_for_ever_is_wrong_where_the_world_ends():
    *_, going_on = _compared([1.0, 1.0, 1.0]).values()
    assert_allclose(going_on["dream"], [0, 1, 1])


def test_a_dream_is_over_where_it_has_more_likely_ended_than_not(material):
    found = studies.episode(material)
    length = len(found.real)
    assert length == 201 and 1 < len(found.dreamed) <= length
    for real, dreamed in found.curves.values():
        assert len(real) == len(dreamed) == length
        assert np.isfinite(dreamed).sum() == len(found.dreamed)
    assert_allclose(found.dreamed[0], found.real[0], atol=1e-6)
