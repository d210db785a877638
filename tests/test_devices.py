"""One agent on several devices: each does a part of the work, and all stay the same agent."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import dreamer
from gymnax_wrappers import make
from utils.core import config, devices, optim
from utils.core.settings import Config

ROOT = Path(__file__).parent.parent
TWO = Mesh(jax.devices()[:2], (devices.DIVISION,))


def _settings(*sets):
    return config.load(ROOT / "dreamer.yaml", Config, ["debug"], ("run.devices=2", *sets))


def _on_two(function, x):
    """What each of two devices makes of its half of x, [2, ...]."""
    part = devices.DIVIDED
    stacked = jax.shard_map(lambda x: function(x)[None], mesh=TWO, in_specs=part, out_specs=part,
                            check_vma=False)
    return np.asarray(jax.jit(stacked)(x))


def test_the_optimiser_steps_along_the_mean_of_all_devices_gradients():
    optimizer = optim.laprop(_settings().optimizer, 100)
    weights, grads = jnp.array([3.0, -1.0]), jnp.array([[0.1, 0.2], [0.3, -0.4]])
    state = jax.tree.map(jnp.array, optimizer.init(weights))
    state = optimizer.update(jnp.ones(2), state, weights)[1]  # past the first rate, which is 0
    step = partial(_step, optimizer, state, weights)
    expected = step(grads.mean(0, keepdims=True))
    assert np.abs(expected).min() > 0.0
    np.testing.assert_allclose(_on_two(step, grads), [expected, expected], rtol=1e-5)


def _step(optimizer, state, weights, grads):
    return optimizer.update(grads[0], state, weights)[0]


def test_the_return_range_is_that_of_the_returns_of_all_devices():
    learning = replace(_settings().learning, return_rate=1.0)
    returns = jnp.concatenate([jnp.zeros(50), jnp.linspace(0.0, 1000.0, 50)])

    moved = partial(_moved, learning)
    expected = np.percentile(returns, [learning.return_low, learning.return_high])
    np.testing.assert_allclose(moved(returns), expected, rtol=1e-5)
    np.testing.assert_allclose(_on_two(moved, returns), [expected, expected], rtol=1e-5)


def _moved(learning, returns):
    return dreamer.update_return_range(jnp.zeros(2), returns, learning)


def test_two_devices_play_lives_of_their_own_and_stay_the_same_agent():
    settings = _settings("run.envs=4")
    assert devices.sharers(settings) == 2
    program, _ = dreamer.build(settings, make(settings.run.env))
    loop, _ = dreamer.fill(program, dreamer.init(program, jax.random.key(3)), 24)
    before = jax.device_get(loop.agent.params)
    key = jax.random.key_data(loop.key)
    loop, finished, metrics = dreamer.train_chunk(program, loop, 3)
    for leaf in jax.tree.leaves((loop.agent, jax.random.key_data(loop.key), metrics)):
        one, other = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert one.shape == leaf.shape
        np.testing.assert_array_equal(one, other)
    learned = jax.tree.map(lambda x, y: not np.array_equal(x, y), before, loop.agent.params)
    assert all(jax.tree.leaves(learned["actor"]))
    assert all(np.isfinite(metric).all() for metric in jax.tree.leaves(metrics))
    assert not np.array_equal(key, jax.random.key_data(loop.key))
    x = loop.replay.rows.x
    assert [shard.data.shape[0] for shard in x.addressable_shards] == [2, 2]
    lives = np.asarray(x)[:, 24:30]
    assert len({life.tobytes() for life in lives}) == 4
    assert finished.is_last.shape[-1] == 4


def test_as_many_devices_share_as_divide_environments_and_batch_and_as_there_are():
    assert jax.device_count() >= 2  # on a CPU the program asks for them
    for sets, expected in {
        ("run.devices=1",): 1,
        ("run.devices=2",): 2,
        ("run.devices=2", "run.envs=3"): 1,
        ("run.devices=2", "replay.batch=5"): 1,
        ("run.devices=3", "run.envs=4", "replay.batch=8"): 2,
        ("run.devices=999", "run.envs=4", "replay.batch=2"): 2,
    }.items():
        assert devices.sharers(_settings(*sets)) == expected, sets


def _totals(program, loop, tell):
    tell(program.config)
    return loop, loop.player.total[None, None], {"mean": loop.player.total.mean()}


def test_one_device_sees_a_program_of_smaller_numbers_with_the_same_train_ratio():
    seen, chunk = [], devices.divided(_totals)
    settings = _settings("run.envs=4", "replay.batch=6")
    program, _ = dreamer.build(settings, make(settings.run.env))
    loop = dreamer.init(program, jax.random.key(3))
    loop = loop._replace(player=loop.player._replace(total=jnp.arange(4.0)))
    _, totals, metrics = jax.jit(chunk, static_argnums=(0, 2))(program, loop, seen.append)
    assert (seen[0].run.envs, seen[0].replay.batch) == (2, 3)
    assert dreamer.updates_per_steps(seen[0]) == dreamer.updates_per_steps(settings)
    assert totals.tolist() == [[[0.0, 1.0, 2.0, 3.0]]]
    assert metrics["mean"] == 1.5
