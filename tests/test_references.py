"""Reference scores that can be computed: returns of the best policy, by dynamic programming."""

import gymnax
import jax
import numpy as np
import pytest
from pytest import approx

from utils.core.references import REFERENCES


def test_no_policy_has_a_higher_return_at_the_two_armed_bandit():
    env, params = gymnax.make("BernoulliBandit-misc")
    steps, good = int(params.max_steps_in_episode), 1.0 - params.reward_prob
    lead = np.arange(-steps - 1, steps + 2)  # rewards for one arm more than for the other
    first = 1.0 / (1.0 + ((1.0 - good) / good) ** lead)  # chance that this one is the good arm
    best = np.zeros(len(lead))
    for _ in range(steps):  # each reward, or its absence, says as much of one arm as of the other
        win = good * first + (1.0 - good) * (1.0 - first)
        after = win * (1.0 + np.roll(best, -1)) + (1.0 - win) * np.roll(best, 1)
        best = np.maximum(after, after[::-1])
    assert best[steps + 1] == approx(REFERENCES["BernoulliBandit-misc"].score, abs=0.05)


def test_no_policy_has_a_higher_return_with_the_pendulum():
    env, params = gymnax.make("Pendulum-v1")
    angles, speeds = np.linspace(-np.pi, np.pi, 181), np.linspace(-8.0, 8.0, 161)
    torques = np.linspace(-params.max_torque, params.max_torque, 15)
    theta, speed, torque = np.meshgrid(angles, speeds, torques, indexing="ij")
    after, r, _ = _moves(env, params, {"theta": theta, "theta_dot": speed}, torque)
    turned = (after.theta + np.pi) % (2.0 * np.pi) - np.pi
    corners = list(_corners((turned, after.theta_dot), (angles, speeds)))
    value = np.zeros(r.shape[:2])
    for _ in range(params.max_steps_in_episode):
        value = (r + sum(weight * value.take(place) for place, weight in corners)).max(-1)

    starts = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 10_000)) * [[np.pi], [1.0]]
    mean = sum(weight * value.take(place) for place, weight in _corners(starts, (angles, speeds)))
    assert mean.mean() == approx(REFERENCES["Pendulum-v1"].score, abs=1.5)  # by a coarse grid


def _moves(env, params, states, actions):
    """The state after each action in a state of its own, the reward, whether that was the end."""
    reset = env.reset(jax.random.key(0), params)[1]
    shape, states = np.shape(actions), {name: np.ravel(x) for name, x in states.items()}
    step = jax.jit(jax.vmap(lambda state, action: env.step_env(
        jax.random.key(0), reset.replace(**state), action, params)))
    _, after, r, over, _ = step(states, np.ravel(actions))
    return jax.tree.map(lambda x: np.asarray(x).reshape(shape + x.shape[1:]), (after, r, over))


def _corners(points, axes):
    """For points in a grid: the surrounding corners and their interpolation weights."""
    sizes = [len(axis) for axis in axes]
    at = [(np.asarray(x) - axis[0]) / (axis[1] - axis[0]) for x, axis in zip(points, axes)]
    low = [np.clip(x.astype(int), 0, size - 2) for x, size in zip(at, sizes)]
    for corner in np.ndindex(2, 2):
        weights = [1.0 - abs(x - (i + c)) for x, i, c in zip(at, low, corner)]
        place = np.ravel_multi_index([i + c for i, c in zip(low, corner)], sizes)
        yield place, weights[0] * weights[1]


@pytest.mark.parametrize("eta, success", [(1e-2, 0.59), (3e-3, 0.68), (1e-3, 0.74)])
def test_the_optimal_policy_for_an_eta_crosses_the_frozen_lake_as_often_as_documented(eta, success):
    env, params = gymnax.make("FrozenLake-misc", is_slippery=False)
    places, moves = np.indices((env.n_states, env.num_actions))
    state, r, over = _moves(env, params, {"position": places}, moves)
    slips = (moves[0][:, None] + [-1, 0, 1]) % env.num_actions  # a third each, on ice
    after, r, over = state.position[:, slips], r[:, slips], over[:, slips]

    gamma = 1.0 - 1.0 / 333
    policy, value = np.full((env.n_states, env.num_actions), 0.25), np.zeros(env.n_states)
    for _ in range(5000):  # the actor's loss: the bonus is for the action, the returns know none
        q = (r + gamma * ~over * value[after]).mean(-1)
        value = (policy * q).sum(-1)
        bonus = np.exp((q - q.max(-1, keepdims=True)) / eta)
        policy = 0.9 * policy + 0.1 * bonus / bonus.sum(-1, keepdims=True)

    chance, crossed = np.zeros(env.n_states), 0.0
    chance[0] = 1.0
    for _ in range(params.max_steps_in_episode):
        flow = chance[:, None, None] * policy[..., None] / 3 * np.ones_like(r)
        crossed += (flow * r).sum()
        chance = np.bincount(after.ravel(), (flow * ~over).ravel(), env.n_states)
    assert crossed == approx(success, abs=0.005)
