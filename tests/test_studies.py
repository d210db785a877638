"""The studies of a report: fresh episodes, rollouts imagined from them, and their errors."""

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
    """Episodes of an untrained agent in Pendulum, 201 rows each, and its predictions."""
    settings = config.load("dreamer.yaml", Config, ["debug"], ["run.env=Pendulum-v1"])
    env = gymnax_wrappers.make("Pendulum-v1")
    program, _ = dreamer.build(settings, env)
    params = dreamer.init(program, jax.random.key(0)).agent.params
    played = jax.device_get(rollouts.play(program, params, (ENVS, ROWS), jax.random.key(1)))
    agent = SimpleNamespace(program=program, params=params, env=env, config=settings)
    scale = measures.importance(played.rows.x)
    return studies.with_weights(studies.Material(agent, params, played, None, scale), params)


def test_played_rows_are_consecutive_complete_episodes(material):
    rows, t = material.played.rows, material.played.t
    assert rows.r.shape == (ENVS, ROWS) and rows.is_first[:, 0].all()
    np.testing.assert_array_equal(t[:, :201], np.tile(np.arange(201), (ENVS, 1)))
    assert rows.is_last[:, 200].all() and rows.is_first[:, 201].all() and not t[:, 201].any()
    assert not rows.is_terminal.any()


def test_half_of_the_environments_start_with_random_actions_and_the_others_never_do(material):
    is_random, t = material.played.is_random, material.played.t
    assert not is_random[: ENVS // 2].any()
    counts = np.linspace(1, rollouts.RANDOM_ACTIONS, ENVS - ENVS // 2).round()
    np.testing.assert_array_equal(is_random[ENVS // 2 :], t[ENVS // 2 :] < counts[:, None])


def test_random_actions_are_uniform_over_all_actions(material):
    env, key = material.agent.env, jax.random.key(0)
    actions = rollouts._random_actions(env, key, 4000)
    assert abs(actions).max() <= 1.0 and actions.std() == pytest.approx(3**-0.5, abs=0.02)
    classes = SimpleNamespace(discrete=True, action_size=3)
    actions = rollouts._random_actions(classes, key, 4000)
    assert_allclose(actions.mean(0), 1 / 3, atol=0.03)
    assert (actions.sum(1) == 1.0).all()


def test_a_state_does_not_depend_on_the_previous_episode(material):
    h, first = material.inferred.latent.h, material.played.t == 0
    assert_allclose(h[first], np.broadcast_to(h[0, 0], h[first].shape), atol=1e-6)
    assert first.sum() == 2 * ENVS and np.ptp(h[~first], 0).max() > 0.1
    assert ((0.0 <= material.inferred.c) & (material.inferred.c <= 1.0)).all()


def _start(material):
    return jax.tree.map(lambda x: jnp.asarray(x[:, 3]), material.inferred.latent)


def test_an_imagined_rollout_of_the_report_equals_that_of_training(material):
    agent, start, key = material.agent, _start(material), jax.random.key(2)
    networks = dreamer.nnx.merge(agent.program.networks, agent.params)
    trained = dreamer.imagine(networks, start, STEPS, key)
    bins = dreamer.value_bins(agent.config.model.bins)
    r = dreamer.twohot_mean(networks.world.reward(trained.s), bins)[:, 1:]
    c = jax.nn.sigmoid(networks.world.continue_(trained.s)[:, 1:, 0])
    alive = jnp.cumprod(jnp.minimum(1.0, c / (1.0 - 1.0 / agent.config.learning.horizon)), 1)
    keys = jax.random.split(key, STEPS)
    for actions in (None, trained.a):  # sampled by the policy, or the same ones given
        found = rollouts.imagine(agent.program, agent.params, start, actions, 1, keys)
        assert found.x.shape == (ENVS, STEPS, 3) and found.rollouts.shape == (1, STEPS, 3)
        assert_allclose(found.alive, alive, atol=1e-5)
        before = jnp.concatenate([jnp.ones((ENVS, 1)), alive[:, :-1]], 1)
        assert_allclose(found.r, before * r, atol=1e-5)
        assert_allclose(found.x[0], found.rollouts[0], atol=1e-5)


def test_a_real_episode_continues_from_the_row_where_it_was_left(material):
    agent, places = material.agent, (np.array([0, 2, 5]), np.array([0, 7, 210]))
    actor = rollouts.actor_at(material.played, material.inferred, places, 2)
    keys = jax.random.split(jax.random.key(4), 3)
    rows = jax.device_get(rollouts.play_on(agent.program, agent.params, actor, keys))
    assert rows.x.shape == (6, 3, 3)
    assert_allclose(rows.x[::2, 0], material.played.rows.x[places], atol=1e-6)
    states = jax.tree.map(lambda x: x[places], material.played.env)
    after, _ = jax.vmap(agent.env.step)(jax.random.split(keys[0], 3), states, rows.a[::2, 0])
    assert_allclose(rows.x[::2, 1, 2], np.squeeze(after.inner.theta_dot), atol=1e-5)


def test_an_open_loop_starts_with_its_episode_and_shows_the_one_that_changes_most(material):
    found, rows = studies.open_loop(material), material.played.rows
    assert found.context == 5 and found.true.shape == (50, 3)
    assert found.imagined.shape == (studies.SAMPLES, 45, 3)
    changes = [measures.squared_error(x[0], x, material.scale).sum() for x in rows.x[:, :50]]
    assert_allclose(found.true, rows.x[np.argmax(changes), :50])
    assert all(len(values) == 45 and np.isfinite(values).all() for values in found.curves.values())


def _episodes_of(*lengths):
    """Rows of environments with episodes of these lengths, of equal total length."""
    first = [np.isin(np.arange(sum(part)), np.cumsum([0, *part])) for part in lengths]
    return SimpleNamespace(is_first=np.array(first), r=np.zeros((len(first), sum(lengths[0]))))


def test_windows_start_with_episodes_and_are_as_long_as_the_longest():
    rows = _episodes_of((3, 12, 15), (10, 20))
    context, size, whole, others = studies._beginnings(rows)
    assert (context, size) == (2, 3), "so long that all five reach it"
    for env, first, length in [*whole, *others]:
        assert rows.is_first[env, first] and length >= size
    with pytest.raises(studies.NothingToShow, match="no episode has two rows"):
        studies._beginnings(_episodes_of((1,) * 5, (1,) * 5))


def test_an_open_loop_shows_a_single_episode_even_among_many_short_ones():
    short = _episodes_of(*[(20,) * 40] * 31, (60,) * 13 + (20,))
    _, size, whole, others = studies._beginnings(short)
    assert size == 50 and (whole[:, 2] == 60).all() and (others[:, 2] == 20).mean() > 0.9
    envs, places = studies._places(short, whole, size)
    assert not short.is_first[envs[:, 1:], places[:, 1:]].any()


def _compared(alive, x=0.0):
    """Errors of 3 imagined steps from one start; all real episodes terminate at step 2."""
    copies = studies.REAL
    real = SimpleNamespace(
        x=np.full((1, copies, 4, 1), 2.0), r=np.ones((1, copies, 4)),
        is_last=np.array([[[0, 0, 1, 0]] * copies], bool),
        is_terminal=np.array([[[0, 0, 1, 0]] * copies], bool))
    real = dreamer.Transition(real.x, real.r, real.is_last, real.is_last, real.is_terminal, real.r,
                       real.r, real.r)
    rows = SimpleNamespace(x=np.ones((1, 2, 1)), r=np.ones((1, 2)),
                           is_first=np.array([[True, False]]), is_terminal=np.zeros((1, 2), bool))
    material = SimpleNamespace(played=SimpleNamespace(rows=rows), scale=np.ones(1))
    imagined = rollouts.Rollouts(np.full((1, 3, 1), x), np.array([[1.0, 1.0, 0.0]]),
                                 np.array([alive]), None, None)
    return studies._compared(material, (np.zeros(1, int), np.zeros(1, int)), real, imagined)


def test_after_the_end_only_the_continuation_of_a_rollout_is_scored():
    observation, reward, continuation = _compared([1.0, 0.0, 0.0], x=2.0).values()
    assert_allclose(observation["imagined"], [0, 0, np.nan])
    assert_allclose(observation["no change"], [1, 1, np.nan])
    assert_allclose(reward["imagined"], 0.0)
    assert_allclose(reward["no change"], [0, 0, 1])
    assert_allclose(continuation["imagined"], 0.0)
    assert_allclose(continuation["no change"], [0, 1, 1])
    for curves in (observation, reward, continuation):  # all real episodes are alike here
        assert_allclose(curves["other real episodes"], np.where(np.isnan(curves["imagined"]),
                                                                np.nan, 0.0))


def test_a_rollout_that_never_ends_is_wrong_after_the_termination():
    *_, continuation = _compared([1.0, 1.0, 1.0]).values()
    assert_allclose(continuation["imagined"], [0, 1, 1])


def test_an_imagined_episode_ends_where_it_has_more_likely_ended_than_not(material):
    found = studies.episode(material)
    length = len(found.real)
    assert length == 201 and 1 < len(found.imagined) <= length
    for real, imagined in found.curves.values():
        assert len(real) == len(imagined) == length
        assert np.isfinite(imagined).sum() == len(found.imagined)
    assert_allclose(found.imagined[0], found.real[0], atol=1e-6)
