"""Environments become rows of the time line in one format, whatever Gymnax returns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from gymnax.utils import load_mnist

import gymnax_wrappers
from utils.core import user_env

# name: shape and kind of the observation, whether actions are discrete, how many.
ENVIRONMENTS = {
    "CartPole-v1": ((4,), "vector", True, 2),
    "Pendulum-v1": ((3,), "vector", False, 1),
    "Acrobot-v1": ((6,), "vector", True, 3),
    "MountainCar-v0": ((2,), "vector", True, 3),
    "MountainCarContinuous-v0": ((2,), "vector", False, 1),
    "Asterix-MinAtar": ((10, 10, 4), "image", True, 5),
    "Breakout-MinAtar": ((10, 10, 4), "image", True, 3),
    "Freeway-MinAtar": ((10, 10, 7), "image", True, 3),
    "Seaquest-MinAtar": ((10, 10, 10), "image", True, 6),
    "SpaceInvaders-MinAtar": ((10, 10, 6), "image", True, 4),
    "Catch-bsuite": ((10, 5, 1), "image", True, 3),
    "DeepSea-bsuite": ((8, 8, 1), "image", True, 2),
    "MemoryChain-bsuite": ((3,), "vector", True, 2),
    "UmbrellaChain-bsuite": ((3,), "vector", True, 2),
    "DiscountingChain-bsuite": ((2,), "vector", True, 5),
    "SimpleBandit-bsuite": ((1,), "vector", True, 11),
    "FourRooms-misc": ((4,), "vector", True, 4),
    "MetaMaze-misc": ((15,), "vector", True, 4),
    "PointRobot-misc": ((6,), "vector", False, 2),
    "BernoulliBandit-misc": ((4,), "vector", True, 2),
    "GaussianBandit-misc": ((4,), "vector", True, 2),
    "Reacher-misc": ((8,), "vector", False, 2),
    "Swimmer-misc": ((16,), "vector", False, 2),
    "Pong-misc": ((30, 40, 3), "image", True, 3),
    "FrozenLake-misc": ((16,), "vector", True, 4),
}


@struct.dataclass
class Clock:
    """State of the scripted environment: the time, and the action that led to it."""

    time: jax.Array
    action: jax.Array


@struct.dataclass
class Script:
    """Where the scripted episode ends: by itself, or by the time limit."""

    ends_at: int = 2
    max_steps_in_episode: int = 9


class Scripted(environment.Environment):
    """x_t = t and r_t = 100 + t, both integers; counts how often its step is traced."""

    space = spaces.Discrete(2)

    def __init__(self):
        super().__init__()
        self.traces = 0

    def reset_env(self, key, params):
        state = Clock(jnp.int32(0), jnp.zeros(self.space.shape, self.space.dtype))
        return self.show(state), state

    def step_env(self, key, state, action, params):
        self.traces += 1
        assert (action.shape, action.dtype) == (self.space.shape, self.space.dtype)
        state = Clock(state.time + 1, action)
        return self.show(state), state, 100 + state.time, state.time >= params.ends_at, {}

    def show(self, state):
        return state.time[None]

    def action_space(self, params):
        return self.space

    def observation_space(self, params):
        return spaces.Box(0, 1, (7,))  # wrong on purpose: only the array is to be trusted


class Steered(Scripted):
    """Shows the action that it received; each entry has bounds of its own."""

    space = spaces.Box(jnp.array([[-1.0], [0.0]]), jnp.array([[3.0], [10.0]]), (2, 1))

    def show(self, state):
        return state.action


class Showing(Scripted):
    """Shows the same array always."""

    def __init__(self, picture):
        super().__init__()
        self.picture = picture

    def show(self, state):
        return self.picture


class TwoHanded(Scripted):
    """Takes two actions at once."""

    def action_space(self, params):
        return spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))


def wrap(env, params=None, observation="auto"):
    """The environment under test around one of the scripted ones."""
    checked = user_env.CheckedEnv("Scripted", env, params or Script())
    return gymnax_wrappers.Environment(checked, observation)


@partial(jax.jit, static_argnames="env")
def advance(env, key, state, action):
    """One jitted step, the environment a static argument."""
    return env.step(key, state, action)


@partial(jax.jit, static_argnames="env")
def rollout(env, key, actions):
    """The reset row, then one row for each of actions [T, A] -> Step [T + 1]"""
    def scan_step(state, inputs):
        return env.step(inputs[0], state, inputs[1])

    state, first = env.reset(key)
    _, rows = jax.lax.scan(scan_step, state, (jax.random.split(key, len(actions)), actions))
    return jax.tree.map(lambda head, tail: jnp.concatenate([head[None], tail]), first, rows)


@pytest.mark.parametrize("ends_at, limit, terminal", [(2, 9, 1), (9, 2, 0), (2, 2, 1)],
                         ids=["terminates", "hits the limit", "does both at once"])
def test_an_episode_is_a_first_row_its_steps_a_last_row_and_then_the_next_first_row(
        ends_at, limit, terminal):
    env = wrap(Scripted(), Script(ends_at, limit))
    rows = rollout(env, jax.random.key(0), jnp.tile(jnp.array([0.0, 1.0]), (6, 1)))
    found = np.stack([np.asarray(v, np.float32).reshape(7) for v in rows], axis=1)
    first, middle, last = [0, 0, 1, 0, 0], [1, 101, 0, 0, 0], [2, 102, 0, 1, terminal]
    np.testing.assert_array_equal(
        found, [first, middle, last, first, middle, last, first], "x, r, first, last, terminal")


def test_rewards_are_float32_and_flags_are_booleans_even_if_gymnax_returns_integers():
    env = wrap(Scripted())
    state, first = env.reset(jax.random.key(0))
    _, second = advance(env, jax.random.key(0), state, jnp.array([1.0, 0.0]))
    for row in (first, second):
        assert [v.dtype for v in row] == [jnp.float32, jnp.float32, bool, bool, bool]
        assert all(v.shape == () for v in row[1:])


def test_the_state_marks_the_episode_as_over_exactly_at_last_rows():
    env = wrap(Scripted())
    state, _ = env.reset(jax.random.key(0))
    over = [bool(state.over)]
    for _ in range(3):
        state, row = advance(env, jax.random.key(0), state, jnp.array([1.0, 0.0]))
        assert bool(state.over) == bool(row.is_last)
        over.append(bool(state.over))
    assert over == [False, False, True, False]


def test_the_next_episode_starts_from_a_state_drawn_with_the_key_of_that_step():
    env = gymnax_wrappers.make("CartPole-v1")
    state, _ = env.reset(jax.random.key(0))
    state = state._replace(over=jnp.array(True))
    action = jnp.array([1.0, 0.0])
    starts = [advance(env, jax.random.key(seed), state, action)[1] for seed in (1, 1, 2)]
    assert all(bool(row.is_first) for row in starts)
    np.testing.assert_array_equal(starts[0].x, starts[1].x)
    assert np.all(starts[0].x != starts[2].x)


def test_pendulum_ends_after_200_steps_and_this_is_not_a_termination():
    rows = rollout(gymnax_wrappers.make("Pendulum-v1"), jax.random.key(0), jnp.zeros((201, 1)))
    assert np.flatnonzero(rows.is_last).tolist() == [200]
    assert np.flatnonzero(rows.is_first).tolist() == [0, 201]
    assert not rows.is_terminal.any()


@pytest.mark.parametrize("action, received", [
    ([-1.0, -1.0], [-1.0, 0.0]), ([1.0, 1.0], [3.0, 10.0]), ([0.0, 0.5], [1.0, 7.5]),
    ([-9.0, 9.0], [-1.0, 10.0])])
def test_continuous_actions_are_clipped_and_scaled_to_the_bounds_of_each_entry(action, received):
    env = wrap(Steered())
    assert not env.discrete and env.action_size == 2
    state, _ = env.reset(jax.random.key(0))
    _, row = advance(env, jax.random.key(0), state, jnp.array(action))
    np.testing.assert_allclose(row.x, received, rtol=1e-6)


@pytest.mark.parametrize("action, torque", [(1.0, 2.0), (-1.0, -2.0), (0.25, 0.5)])
def test_pendulum_is_pushed_with_twice_the_action(action, torque):
    env = gymnax_wrappers.make("Pendulum-v1")
    state, _ = env.reset(jax.random.key(3))
    played, row = advance(env, jax.random.key(0), state, jnp.array([action]))
    _, expected, r, _, _ = env.env.step_env(
        jax.random.key(0), state.inner, jnp.array([torque]), env.params)
    np.testing.assert_allclose(played.inner.theta_dot, expected.theta_dot, rtol=1e-5)
    np.testing.assert_allclose(row.r, r, rtol=1e-5)


def test_mountain_car_pays_for_the_clipped_action_and_not_for_the_raw_one():
    env = gymnax_wrappers.make("MountainCarContinuous-v0")
    state, _ = env.reset(jax.random.key(0))
    _, row = advance(env, jax.random.key(0), state, jnp.array([5.0]))
    np.testing.assert_allclose(row.r, -0.1, rtol=1e-5)


def test_a_one_hot_action_reaches_gymnax_as_its_index():
    env = wrap(Scripted())
    state, _ = env.reset(jax.random.key(0))
    for index in (0, 1):
        played, _ = advance(env, jax.random.key(0), state, jax.nn.one_hot(index, 2))
        assert int(played.inner.action) == index


def test_the_table_of_this_file_lists_every_environment_of_gymnax_that_needs_no_download():
    ours = [name for name in gymnax_wrappers.BUILT_IN if name != "MNISTBandit-bsuite"]
    assert sorted(ours) == sorted(ENVIRONMENTS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_gives_the_promised_shape_and_dtype_and_finite_values(name):
    shape, kind, discrete, size = ENVIRONMENTS[name]
    dtype = jnp.uint8 if kind == "image" else jnp.float32
    env = gymnax_wrappers.make(name)
    assert (env.name, env.x_shape, env.x_dtype) == (name, shape, dtype)
    assert (env.is_image, env.discrete, env.action_size) == (kind == "image", discrete, size)
    key, actions = jax.random.key(0), jax.nn.one_hot(jnp.zeros(3, int), size)
    rows = rollout(env, key, actions)
    assert (rows.x.shape, rows.x.dtype) == ((4, *shape), dtype)
    assert rows.r.dtype == jnp.float32 and np.isfinite(rows.r).all()
    assert np.isfinite(rows.x).all()
    if kind == "image":
        assert set(np.unique(rows.x)) == {0, 255}, "pixels of 0 and 1 fill the range of a byte"


def test_a_scalar_observation_becomes_one_hot():
    _, row = gymnax_wrappers.make("FrozenLake-misc").reset(jax.random.key(0))
    np.testing.assert_array_equal(row.x, np.eye(16)[0])


@pytest.mark.parametrize("raw, pixels", [
    (jnp.array([[-1.0, 0.0, 0.5, 1.0]] * 4), [0, 0, 128, 255]),
    (jnp.array([[False, True, False, True]] * 4), [0, 255, 0, 255]),
    (jnp.array([[0, 1, 0, 2]] * 4), [0, 255, 0, 255]),
    (jnp.array([[0, 1, 128, 255]] * 4, jnp.uint8), [0, 1, 128, 255])],
    ids=["floats", "booleans", "integers", "bytes"])
def test_images_become_bytes_and_bytes_stay_as_they_are(raw, pixels):
    env = wrap(Showing(raw))
    _, row = env.reset(jax.random.key(0))
    assert env.is_image and row.x.shape == (4, 4, 1) and row.x.dtype == jnp.uint8
    np.testing.assert_array_equal(row.x[0, :, 0], pixels)


@pytest.mark.parametrize("shape, is_image", [
    ((), False), ((9,), False), ((3, 9), False), ((9, 3), False), ((4, 4), True),
    ((2, 2, 1), True)])
def test_only_arrays_shaped_like_images_are_images(shape, is_image):
    env = wrap(Showing(jnp.zeros(shape)))
    assert env.is_image == is_image
    assert env.x_shape == ((*shape, 1)[:3] if is_image else (int(np.prod(shape)),))


def test_the_observation_argument_overrides_the_shape():
    flat = gymnax_wrappers.make("Catch-bsuite", observation="vector")
    _, row = flat.reset(jax.random.key(0))
    assert not flat.is_image and row.x.shape == (50,) and row.x.dtype == jnp.float32
    assert row.x.max() == 1.0, "a flattened image keeps its raw values"
    assert gymnax_wrappers.make("SimpleBandit-bsuite", "image").x_shape == (1, 1, 1)


def test_environments_vectorised_in_a_scan_behave_like_single_ones():
    env = gymnax_wrappers.make("CartPole-v1")
    keys = jax.random.split(jax.random.key(0), 3)
    actions = jax.nn.one_hot(jnp.array([[0] * 25, [1] * 25, [0, 1] * 12 + [0]]), 2)
    together = jax.vmap(partial(rollout, env))(keys, actions)
    assert together.is_last.sum() >= 2, "the comparison must cross the ends of episodes"
    for e in range(3):
        state, row = env.reset(keys[e])
        alone = [row]
        for key, action in zip(jax.random.split(keys[e], 25), actions[e]):
            state, row = advance(env, key, state, action)
            alone.append(row)
        for field, expected in zip(together, zip(*alone)):
            np.testing.assert_allclose(field[e], jnp.stack(expected), rtol=1e-5, atol=1e-6)


def test_repeated_calls_with_one_environment_compile_once():
    inner = Scripted()
    env = wrap(inner)
    state, _ = env.reset(jax.random.key(0))
    for seed in range(4):
        state, _ = advance(env, jax.random.key(seed), state, jnp.array([1.0, 0.0]))
    assert inner.traces == 1


@pytest.mark.parametrize("name, parts", [
    ("CartPole-v1", ["vector of 4", "2 discrete actions", "at most 500 steps"]),
    ("Pendulum-v1", ["vector of 3", "1 continuous action", "at most 200 steps"]),
    ("Breakout-MinAtar", ["image of 10x10x4", "3 discrete actions"]),
    ("BernoulliBandit-misc", ["at most 100 steps"])])
def test_the_description_is_one_line_with_name_observation_actions_and_limit(name, parts):
    line = gymnax_wrappers.make(name).describe()
    assert line.startswith(name + ": ") and "\n" not in line
    assert all(part in line for part in parts), line


def error_of(function, *arguments):
    """The one-line message of the ValueError of this call."""
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_is_answered_with_similar_names_and_the_flag_for_the_list():
    message = error_of(gymnax_wrappers.make, "Cartpole-v0")
    assert "'Cartpole-v0'" in message and "--list-envs" in message
    assert "CartPole-v1" in message


def test_the_mnist_bandit_is_refused_without_trying_to_download(monkeypatch, tmp_path):
    monkeypatch.setattr(load_mnist, "load_mnist", lambda: pytest.fail("tried to load MNIST"))
    monkeypatch.setattr(gymnax_wrappers, "MNIST_FOLDER", tmp_path)
    for name in gymnax_wrappers.MNIST_FILES[:3]:
        (tmp_path / name).touch()
    message = error_of(gymnax_wrappers.make, "MNISTBandit-bsuite")
    assert "download" in message and gymnax_wrappers.MNIST_FILES[3] in message


def test_the_mnist_bandit_is_an_image_of_28_pixels_if_its_data_exists(monkeypatch, tmp_path):
    digits = np.zeros((3, 28, 28), np.int8), np.arange(3, dtype=np.uint8)
    monkeypatch.setattr(load_mnist, "load_mnist", lambda: (digits, digits))
    monkeypatch.setattr(gymnax_wrappers, "MNIST_FOLDER", tmp_path)
    for name in gymnax_wrappers.MNIST_FILES:
        (tmp_path / name).touch()
    env = gymnax_wrappers.make("MNISTBandit-bsuite")
    assert env.x_shape == (28, 28, 1) and env.x_dtype == jnp.uint8 and env.action_size == 10


def test_a_vector_cannot_be_read_as_an_image():
    message = error_of(gymnax_wrappers.make, "CartPole-v1", "image")
    assert "image" in message and "CartPole-v1" in message


def test_a_misspelt_kind_of_observation_is_an_error_and_not_a_vector():
    message = error_of(gymnax_wrappers.make, "Breakout-MinAtar", "images")
    assert "'images'" in message and "auto" in message


def test_dictionaries_of_observations_and_tuples_of_actions_are_refused():
    observed = error_of(wrap, Showing({"a": jnp.zeros(3), "b": jnp.zeros(2)}))
    assert "observations" in observed and "dict" in observed
    acted = error_of(wrap, TwoHanded())
    assert "actions" in acted and "Tuple" in acted
