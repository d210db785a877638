"""What is learnt in tiny worlds (tests/worlds.py) is what they are worth, reckoned by hand."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose
from pytest import approx

import dreamer
from tests import worlds
from utils.core import config
from utils.core.devices import on_one_device
from utils.core.settings import Config

ROOT = Path(__file__).parent.parent
ENVS, FRESH = 8, 500  # FRESH rows of each environment before the first update and after the last
CHUNKS = 20  # calls of the compiled chunk in a training
HORIZON = 5
GAMMA = 1 - 1 / HORIZON
SMALL = [
    f"run.envs={ENVS}", f"run.prefill={ENVS * FRESH}", f"learning.horizon={HORIZON}",
    "replay.batch=16", "replay.length=8", "run.train_ratio=16", "model.hidden=32", "model.units=32",
    # chances are to be learnt exactly: no free bits, hardly a uniform share
    "learning.free_bits=0", "model.unimix=0.001", "learning.beta_pred=1", "learning.slow_rate=0.02",
    "optimizer.lr=0.003", "optimizer.warmup=50", "optimizer.lr_final=0.1",
]

LESSONS = {  # environment, updates, settings
    "told": (worlds.Worlds(), 2000, ["model.latents=2", "model.classes=16"]),
    # The toss must be seen clearly: each nat that the latent saves on it blurs the chances.
    "coin": (worlds.Coin(), 1500, ["learning.beta_pred=10", "model.latents=1", "model.classes=2",
                                   "learning.imagination=1"]),
}


class Told(NamedTuple):
    """Fresh rows [E, L, ...] and what the agent says of them; environment e stays in world e."""

    t: np.ndarray  # place in the episode
    signals: np.ndarray  # of this row and the three before, [E, L, 4]
    rows: dreamer.Transition
    r: np.ndarray
    c: np.ndarray
    values: np.ndarray
    policy: np.ndarray  # chances of the actions -1 and +1, [E, L, 2]

    def of(self, world):
        """What belongs to one world, [L, ...]."""
        return jax.tree.map(lambda column: column[world], self)


class Learnt(NamedTuple):
    """What one training leaves: networks without weights, weights, fresh rows [E, L, ...]."""

    program: dreamer.Program
    params: nnx.State
    rows: dreamer.Transition


def build(name):
    """The Program of a training, and the shapes of its weights."""
    env, updates, sets = LESSONS[name]
    capacity = ENVS * (FRESH + updates + FRESH)  # nothing is overwritten: the rows stay in order
    lengths = [f"replay.capacity={capacity}", f"run.steps={ENVS * (FRESH + updates)}"]
    settings = config.load(ROOT / "dreamer.yaml", Config, ["debug"], SMALL + lengths + sets)
    return dreamer.build(settings, env)


def learn(name, in_full):
    """Train a small agent, one update for each step of all environments: -> Learnt

    What is called a thousand times is compiled in full, all else in a hurry."""
    (program, _), (env, updates, _) = build(name), LESSONS[name]
    loop, keys = dreamer.init(program, jax.random.key(1)), jax.random.split(jax.random.key(1), ENVS)
    if name == "told":  # environment e stays in world e
        place, timestep = jax.jit(jax.vmap(env.enter))(keys, jnp.arange(ENVS) % len(worlds.NAMES))
    else:
        place, timestep = jax.jit(jax.vmap(env.reset))(keys)
    loop = loop._replace(actor=loop.actor._replace(env=place, timestep=timestep))
    # Compiled by hand, as in a run: a second call, with what the first one gave, compiles nothing.
    prefill = dreamer.prefill.lower(program, loop, FRESH).compile()
    with in_full():
        chunk = dreamer.train_chunk.lower(program, loop, updates // CHUNKS).compile()
    loop, _ = prefill(loop)
    for _ in range(CHUNKS):  # XLA gives memory back between its calls, not within one
        loop, _, _ = chunk(loop)
    loop, _ = prefill(loop)
    rows = jax.tree.map(lambda column: column[:, -FRESH:], loop.replay.rows)
    return Learnt(program, *jax.device_get((loop.agent.params, rows)))


def states(learnt):
    """The posterior states s_t in which the agent acted, as Latent [E, L, ...]."""
    return dreamer.Latent(
        learnt.rows.h, jax.nn.one_hot(learnt.rows.z, learnt.program.config.model.classes))


@jax.jit
def heads(networks, s, bins):
    """Reward, continue, value and policy of features s [..., F]."""
    r, values = (dreamer.twohot_mean(head(s), bins)
                 for head in (networks.world.reward, networks.critic))
    c = jax.nn.sigmoid(networks.world.continue_(s)[..., 0])
    return {"r": r, "c": c, "values": values, "policy": jax.nn.softmax(networks.actor(s).logits)}


@pytest.fixture(scope="module")
def told(in_full):
    """What the agent says of all worlds, learnt in one run."""
    learnt = learn("told", in_full)
    networks = nnx.merge(learnt.program.networks, learnt.params)
    bins = dreamer.value_bins(learnt.program.config.model.bins)
    said = heads(networks, dreamer.features(states(learnt)), bins)
    rows, index = learnt.rows, np.arange(FRESH)
    t = index - np.maximum.accumulate(np.where(rows.is_first, index, -FRESH), 1)
    signals = np.sign(rows.x[..., 0])
    signals = np.stack([np.roll(signals, k, axis=1) for k in range(4)], -1)
    told = Told(t, signals, rows, said["r"], said["c"], said["values"], said["policy"])
    return jax.tree.map(lambda column: np.asarray(column[:, 4:]), told)  # what came before is known


def test_a_constant_reward_is_worth_itself_times_the_horizon(told):
    told = told.of(worlds.CONSTANT)
    assert told.r[told.t == 0].mean() == approx(0.0, abs=0.05)
    assert told.r[told.t > 0].mean() == approx(1.0, abs=0.05)
    assert told.values.mean() == approx(HORIZON, rel=0.05)


def test_a_time_limit_takes_nothing_from_the_value_of_the_row_that_it_cuts(told):
    told = told.of(worlds.CONSTANT)
    assert told.c.mean() == approx(GAMMA, abs=0.02)
    assert told.values[told.rows.is_last].mean() == approx(HORIZON, rel=0.05)


@pytest.mark.parametrize("signal", [-1, 1])
def test_a_reward_that_the_observation_shows_is_read_from_it(told, signal):
    told = told.of(worlds.SHOWN)
    now = (told.t > 0) & (told.signals[:, 0] == signal)
    assert told.r[now].mean() == approx((1 + signal) / 2, abs=0.1)
    assert told.values[now].mean() == approx(HORIZON / 2, abs=0.4)  # it says nothing of the next


@pytest.mark.parametrize("signal", [-1, 1])
def test_a_reward_one_step_late_is_foreseen_and_remembered(told, signal):
    told = told.of(worlds.LATE)
    mine, other = (told.values[told.signals[:, 0] == shown].mean() for shown in (signal, -signal))
    assert mine - other == approx(2 * signal, abs=0.4)
    # what follows are tosses: a chance of 0.6 for one side would add 1 to both
    assert mine + other == approx(0.0, abs=1.5)
    after = (told.t > 0) & (told.signals[:, 1] == signal)
    assert told.r[after].mean() == approx(signal, abs=0.15)


@pytest.mark.parametrize("signal", [-1, 1])
def test_a_cue_is_remembered_until_it_tells_the_right_action(told, signal):
    told = told.of(worlds.CUE)
    chances = told.policy[(told.t == 2) & (told.signals[:, 2] == signal)]
    # 0.5 without memory; six seeds on one machine: 0.95 to 0.996
    assert chances[:, (1 + signal) // 2].mean() > 0.75
    for t in range(3):
        assert told.values[told.t == t].mean() == approx(GAMMA ** (2 - t), abs=0.2)


@pytest.mark.parametrize("signal", [-1, 1])
def test_the_right_action_is_chosen(told, signal):
    told = told.of(worlds.ARMS)
    now = told.signals[:, 0] == signal
    assert told.policy[now, (1 + signal) // 2].mean() > 0.95
    assert told.values[now].mean() == approx(HORIZON, abs=0.4)


def test_nothing_is_expected_after_the_end_of_the_world(told):
    told = told.of(worlds.ENDING)
    for t, value in enumerate([1 + GAMMA + GAMMA**2, 1 + GAMMA, 1.0]):
        assert told.c[told.t == t].mean() == approx(GAMMA, abs=0.03)
        assert told.values[told.t == t].mean() == approx(value, abs=0.2)
    assert told.rows.is_terminal[told.t == 3].all()
    assert told.r[told.t == 3].mean() == approx(1.0, abs=0.05)  # the last reward is not lost
    assert told.c[told.t == 3].mean() < 0.05


@pytest.mark.parametrize("signal", [-1, 1])
def test_an_episode_knows_nothing_of_the_one_before(told, signal):
    told = told.of(worlds.BOUNDARY)
    after = (told.t == 1) & (told.signals[:, 3] == signal)
    assert told.r[after].mean() == approx(0.0, abs=0.2)


@pytest.fixture(scope="module")
def coin(in_full):
    """The coin learnt by one latent of two classes."""
    return learn("coin", in_full)


CHANCES = {True: 0.5, False: 1.0 - worlds.TAILS_AGAIN}  # of heads, after heads and after tails


@pytest.mark.slow
@pytest.mark.parametrize("after", CHANCES)
def test_the_entropy_of_the_prior_is_that_of_the_coin(coin, after):
    networks = nnx.merge(coin.program.networks, coin.params)
    entropy = dreamer.entropy(networks.world.prior_probs(coin.rows.h))[:, 1:, 0]
    before = coin.rows.x[:, :-1, 0] > 0
    chances = np.array([CHANCES[after], 1.0 - CHANCES[after]])
    expected = -np.sum(chances * np.log(chances))
    assert entropy[before == after].mean() == approx(expected, abs=0.04)


@pytest.mark.slow
def test_the_coin_falls_in_imagination_as_in_the_world(coin):
    networks, model = nnx.merge(coin.program.networks, coin.params), coin.program.config.model
    start = jax.tree.map(lambda x: x[:, -100:].reshape(-1, *x.shape[2:]), states(coin))
    s = jax.jit(partial(dreamer.imagine, networks, steps=20))(start, key=jax.random.key(2)).s
    h, z = jnp.split(s, [model.deter], -1)
    heads = networks.world.decode(dreamer.Latent(h, z.reshape(*z.shape[:-1], 1, -1)))[..., 0] > 0
    for after, chance in CHANCES.items():
        assert heads[:, 1:][heads[:, :-1] == after].mean() == approx(chance, abs=0.04)


TABLES = (  # r, c and values of the five states of a circle
    np.array([0.0, 1.0, -2.0, 5.0, 0.5]), np.array([0.9, 0.9, 0.9, 0.0, 0.5]),
    np.array([3.0, -1.0, 4.0, 2.0, 7.0]))
EVEN = (np.ones(5), np.full(5, 0.9), np.full(5, 2.0))


@partial(jax.jit, static_argnames=("steps", "copies"))
def imagined_returns(tables, onward, lambda_, steps, copies=1):
    """λ-returns [5, H], averaged over rollouts that begin in each of the five states."""
    settings = config.load("dreamer.yaml", Config, ["debug"], ["model.bins=41"])
    settings = replace(settings, learning=replace(settings.learning, lambda_=lambda_))
    networks = worlds.Circle(tables, onward, dreamer.value_bins(settings.model.bins))
    frozen = dreamer.Frozen(networks, networks.critic)
    start = dreamer.Latent(jnp.tile(jnp.eye(5), (copies, 1)), jnp.ones((5 * copies, 1, 1)))
    imagined = dreamer.imagine(networks, start, steps, jax.random.key(0))
    losses = on_one_device(dreamer.imagination_losses)
    _, (returns, _), _ = losses(networks, frozen, imagined, jnp.zeros(2), 0.0, settings)
    return returns.reshape(copies, 5, steps).mean(0)


def test_with_lambda_0_an_imagined_return_looks_one_step_ahead():
    r, c, values = TABLES
    following = np.roll(r + c * values, -1)  # of the next state, where the policy always goes on
    expected = [np.roll(following, -t) for t in range(4)]
    returns = imagined_returns(TABLES, 1.0, 0.0, 4)
    assert_allclose(returns, np.stack(expected, 1), rtol=1e-4, atol=1e-4)


def test_with_lambda_1_an_imagined_return_adds_all_rewards_and_the_last_value():
    expected = [(1 - 0.9**left) / (1 - 0.9) + 0.9**left * 2.0 for left in (4, 3, 2, 1)]
    assert_allclose(imagined_returns(EVEN, 1.0, 1.0, 4), [expected] * 5, rtol=1e-4)


def test_with_lambda_1_an_imagined_return_stops_at_the_end_of_the_world():
    # from state 0: 1 - 2 γ + 5 γ², and what stands behind c = 0 counts for nothing
    expected = 1.0 - 2.0 * 0.9 + 5.0 * 0.81
    assert imagined_returns(TABLES, 1.0, 1.0, 8)[0, 0] == approx(expected, rel=1e-4)


@pytest.mark.parametrize("onward, copies, tolerance", [(1.0, 1, 1e-3), (0.5, 1000, 0.3)])
@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_a_long_imagined_rollout_solves_the_linear_equations_of_the_table(
        onward, copies, tolerance, lambda_):
    # R = P (r + c ((1 - λ) v + λ R)), where P holds the policy's chances from state to state
    r, c, values = TABLES
    chances = onward * np.roll(np.eye(5), 1, axis=1) + (1 - onward) * np.eye(5)
    known = chances @ (r + (1 - lambda_) * c * values)
    expected = np.linalg.solve(np.eye(5) - lambda_ * chances * c, known)
    found = imagined_returns(TABLES, onward, lambda_, 25, copies)
    assert_allclose(found[:, 0], expected, rtol=0, atol=tolerance)
