"""One agent on several devices: each does a part of the work, and all stay the same agent."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import dreamer
from gymnax_wrappers import make
from tests.worlds import Circle
from utils.core import config, devices
from utils.core.devices import DEVICES
from utils.core.settings import Config

ROOT = Path(__file__).parent.parent
# The numbers of the first test in test_seeds.py: what one of the two compiled, the other one loads.
SHORT = ["run.envs=4", "run.train_ratio=8", "run.chunk=16", "run.steps=320",
         "run.eval_every=160"]
TWO = Mesh(jax.devices()[:2], (DEVICES,))


def _settings(*sets):
    return config.load(ROOT / "dreamer.yaml", Config, ["debug"], ("run.devices=2", *sets))


def _on_two(function, *args):
    """What each of two devices makes of its half of the arguments [2 n, ...]: -> [2, ...]"""
    part = PartitionSpec(DEVICES)
    stacked = jax.shard_map(lambda *args: jax.tree.map(lambda x: x[None], function(*args)),
                            mesh=TWO, in_specs=part, out_specs=part, check_vma=False)
    return jax.device_get(jax.jit(stacked)(*args))


def _agent(weights):
    params = {"critic": weights}
    return dreamer.AgentState(params=params, slow_critic=weights, average=params,
                              opt_state=optax.sgd(1.0).init(weights), return_range=None, step=0)


def test_an_update_follows_the_mean_of_all_devices_gradients(monkeypatch):
    monkeypatch.setattr(dreamer, "total_loss", lambda params, program, state, batch, key: (
        jnp.vdot(params["critic"], batch), dreamer.Aux(None, None, {})))
    program, weights = SimpleNamespace(config=_settings(), optimizer=optax.sgd(1.0)), jnp.ones(2)
    start = _agent(weights)
    slopes = jnp.array([[0.1, 0.2], [0.3, -0.4]])
    change, metrics = _on_two(partial(_moved, program, start), slopes)
    np.testing.assert_allclose(change, [-slopes.mean(0)] * 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["optimizer/grad_norm"],
                               [np.linalg.norm(slopes.mean(0))] * 2, rtol=1e-5)


def _moved(program, start, slope):
    state, _, metrics = dreamer.train_step(program, start, slope[0], None)
    return state.params["critic"] - start.params["critic"], metrics


@pytest.mark.parametrize("mean_dtype, moved", [("float32", 1.0 + 2.0**-10), ("bfloat16", 1.0)])
def test_gradients_are_exchanged_in_the_type_that_the_yaml_names(mean_dtype, moved, monkeypatch):
    monkeypatch.setattr(dreamer, "total_loss", lambda params, program, state, batch, key: (
        jnp.vdot(params["critic"], batch), dreamer.Aux(None, None, {})))
    settings = _settings(f"optimizer.mean_dtype={mean_dtype}")
    program, weights = SimpleNamespace(config=settings, optimizer=optax.sgd(1.0)), jnp.zeros(2)
    start = _agent(weights)
    change, _ = _on_two(partial(_moved, program, start), jnp.full((2, 2), 1.0 + 2.0**-10))
    assert change.dtype == np.float32 and (change == -moved).all()


def test_more_than_eight_devices_take_percentiles_of_a_share_of_their_returns():
    returns = jax.random.normal(jax.random.key(0), (16, 64 * 20, 15)) + jnp.arange(15.0)
    levels = jnp.array([5.0, 50.0, 95.0])
    on_all = jax.vmap(partial(_percentiles, levels), axis_name=DEVICES, out_axes=(None, 0))
    (few, exact), (most, near) = on_all(returns[:8]), on_all(returns)
    assert (few, most) == (64 * 20 * 15, devices.SHARE // 16)
    np.testing.assert_allclose(exact[0], np.percentile(returns[:8], levels), rtol=1e-5)
    np.testing.assert_allclose(near, [np.percentile(returns, levels)] * 16, atol=0.3)


def _percentiles(levels, returns):
    share = devices.sample_of(returns)
    return share.size, jnp.percentile(jax.lax.all_gather(share, DEVICES), levels)


@pytest.mark.parametrize("devices_, rollouts, steps", [
    (1000, 1024, 15), (9, 64, 5), (64, 1024, 15)])
def test_a_share_of_the_returns_has_as_many_of_each_step_of_a_rollout(devices_, rollouts, steps):
    returns = jnp.broadcast_to(jnp.arange(steps), (rollouts, steps))
    share = jax.vmap(lambda _: devices.sample_of(returns), axis_name=DEVICES)(jnp.zeros(devices_))
    counts = np.bincount(np.asarray(share[0], int).ravel(), minlength=steps)
    assert counts.max() - counts.min() <= 1 and counts.sum() <= devices.SHARE // devices_


def test_the_return_range_is_that_of_the_returns_of_all_devices():
    settings = _settings("learning.return_rate=1", "model.bins=41")
    bins, tables = dreamer.value_bins(41), (np.arange(8.0), np.full(8, 0.9), np.zeros(8))
    networks = Circle(tables, 1.0, bins)
    frozen = dreamer.Frozen(networks, networks.critic)
    starts = dreamer.Latent(jnp.eye(8), jnp.ones((8, 1, 1)))
    imagined = dreamer.imagine(networks, starts, 2, jax.random.key(0))
    returns, return_range = _on_two(
        lambda s, a: dreamer.imagination_losses(
            networks, frozen, dreamer.Imagined(s=s, a=a), jnp.zeros(2), 0.0, settings)[1],
        *imagined)
    levels = [settings.learning.return_low, settings.learning.return_high]
    np.testing.assert_allclose(return_range, [np.percentile(returns, levels)] * 2, rtol=1e-5)
    assert np.percentile(returns[0], 95) < return_range[0, 1] - 1.0  # not that of one device


def test_two_devices_play_lives_of_their_own_and_stay_the_same_agent():
    settings = _settings(*SHORT)
    assert devices.count(settings) == 2
    program, _ = dreamer.build(settings, make(settings.run.env))
    loop, _ = dreamer.prefill(program, dreamer.init(program, jax.random.key(3)), 48)
    before = jax.device_get(loop.agent.params)
    key = jax.random.key_data(loop.key)
    loop, stats, metrics = dreamer.train_chunk(program, loop, 2)
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
    lives = np.asarray(x)[:, 48:52]
    assert len({life.tobytes() for life in lives}) == 4
    assert stats.is_last.shape[-1] == 4


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
        assert devices.count(_settings(*sets)) == expected, sets


def _totals(seen, program, state, number):
    seen.append((program.config, number))
    total = state.actor.episode_return
    return state, total[None, None], {"mean": total.mean()}


def test_one_device_sees_a_program_of_smaller_numbers_with_the_same_train_ratio():
    settings, seen = _settings("run.envs=4", "replay.batch=6"), []
    program, _ = dreamer.build(settings, make(settings.run.env))
    state = dreamer.init(program, jax.random.key(3))
    state = state._replace(actor=state.actor._replace(episode_return=jnp.arange(4.0)))
    run = jax.jit(lambda state: dreamer.on_all_devices(partial(_totals, seen), program, state, 7))
    _, found, metrics = run(state)
    (part, number), *_ = seen
    assert (part.run.envs, part.replay.batch, number) == (2, 3, 7)
    assert dreamer.updates_per_steps(part) == dreamer.updates_per_steps(settings)
    assert found.tolist() == [[[0.0, 1.0, 2.0, 3.0]]]
    assert metrics["mean"] == 1.5


# Bytes of the gradient of one update; docs/hosts.md has the same numbers.
GRADIENTS = {"size1m": 2_549_524, "size12m": 38_896_660, "size25m": 87_048_724,
             "size50m": 154_337_300, "size100m": 346_323_988, "size200m": 614_856_724,
             "size400m": 1_381_560_340}
EXCHANGE = re.compile(r'"stablehlo\.(all_\w+|reduce_scatter|collective_\w+)".*?'
                      r': \(tensor<([^>]*)>\) -> tensor', re.DOTALL)
SMALL_CHUNK = ["run.devices=2", "run.envs=16", "run.prefill=1040", "run.chunk=1024",
               "replay.batch=16", "replay.length=64"]


def _exchanges(size, *sets):
    """[(operation, the type of what a device gives)] in the lowered program; nothing is allocated

    Loops are not unrolled: an operation of an update is there once."""
    settings = config.load(ROOT / "dreamer.yaml", Config, [size], sets)
    program, shapes = dreamer.build(settings, make(settings.run.env))
    state = dreamer.init.eval_shape(program, jax.random.key(0))
    text = dreamer.train_chunk.lower(program, state, 4).as_text()
    assert len(re.findall("stablehlo.(?:all_|reduce_scatter|collective_)", text)) == 6
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)), EXCHANGE.findall(text)


@pytest.mark.parametrize("size", [
    size if size == "size1m" else pytest.param(size, marks=pytest.mark.slow) for size in GRADIENTS])
def test_an_update_exchanges_the_gradient_in_one_sum_and_the_returns_in_one_gather(size):
    weights, found = _exchanges(size, *SMALL_CHUNK)
    rounds, steps = 4, 4  # of one update, in a chunk
    of_an_update = [("all_gather", "1x512x15xf32"), ("all_reduce", f"{weights}xf32")]
    of_a_chunk = [("all_gather", f"{rounds}x{steps}x8x{kind}") for kind in ("i1", "f32", "i32")] + [
        ("all_reduce", f"{rounds * 21}xf32")]
    assert sorted(found) == sorted(of_an_update + of_a_chunk)
    assert GRADIENTS[size] == 4 * weights


def test_a_gradient_in_bfloat16_is_half_as_many_bytes_and_the_metrics_stay_float32():
    weights, found = _exchanges("debug", "run.devices=2", "optimizer.mean_dtype=bfloat16")
    sums = {kind.partition("x")[::2] for name, kind in found if name == "all_reduce"}
    assert len(sums) == 2 and (str(weights), "bf16") in sums
    assert {kind for _, kind in sums} == {"bf16", "f32"}


def test_the_page_about_hosts_has_these_numbers():
    page = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
    for size, gradient in GRADIENTS.items():
        assert re.search(rf"^\| {size.removeprefix('size')} \| {gradient / 1e6:,.1f} MB \|", page,
                         re.MULTILINE), size


def test_seeds_are_divided_among_groups_of_devices_that_exchange_nothing(monkeypatch):
    settings = config.load(ROOT / "dreamer.yaml", Config, ["debug"], ["run.chunk=8"])
    program, _ = dreamer.build(settings, make(settings.run.env))
    shapes = dreamer.SEVERAL_SEEDS.init.eval_shape(program, jax.random.split(jax.random.key(0), 4))
    text = dreamer.SEVERAL_SEEDS.train_chunk.lower(program, shapes, 2).as_text()
    found = set(re.findall(r"replica_groups = dense<(.*?)>", text))
    assert found == {str([[n] for n in range(devices.groups(settings, 4))])}
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    for seeds, devices_, expected in ((4, 1, 4), (16, 1, 8), (6, 1, 6), (7, 1, 7), (9, 1, 3),
                                      (8, 2, 4), (5, 2, 1), (2, 2, 2)):
        sets = [f"run.devices={devices_}"]
        one = config.load(ROOT / "dreamer.yaml", Config, ["debug"], sets)
        assert devices.groups(one, seeds) == expected, (seeds, devices_)
