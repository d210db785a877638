"""A picture drawn from an observation alone equals the one drawn from the state."""

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ImageColor

import gymnax_wrappers
from tests.test_drawings import advance, begin, make
from utils.pictures import names, observations
from utils.pictures.drawings import GROUND, MINATAR, SIZE, draw
from utils.run.curves import VERMILION


def _start(name):
    """(Environment, state, observation) of a first row."""
    env = make(name)
    return env, *jax.device_get(begin(env, jax.random.key(3)))


@pytest.mark.parametrize("name", observations.STATES)
def test_the_observation_gives_the_same_picture_as_the_state(name):
    env, state, x = _start(name)
    apart = np.abs(observations.scene(env, x).astype(int) - draw(env, state, x)).max(-1)
    assert (apart > 20).mean() < 0.001, "but for the rounding of an edge"


@pytest.fixture
def of_gymnax():
    """Whether a named environment is one of Gymnax; all others are known to Gymnasium."""
    assert names.ENTRIES.keys() | names.ACTIONS.keys() <= {
        *gymnax.registered_envs, *gymnasium.registry}
    return gymnax.registered_envs.__contains__


def test_every_entry_of_a_vector_has_a_name(of_gymnax):
    for name in filter(of_gymnax, names.ENTRIES):
        assert len(names.ENTRIES[name]) == gymnax_wrappers.make(name).x_shape[0], name
    assert set(observations.STATES) <= set(gymnax.registered_envs)
    assert names.entries(gymnax_wrappers.make("FrozenLake-misc"))[15] == "entry 15"


@pytest.mark.parametrize("name", ["PointRobot-misc", "Breakout-MinAtar", "Catch-bsuite"])
def test_without_the_state_the_observation_itself_is_drawn(name):
    env, _, x = _start(name)
    picture = observations.scene(env, x)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1


def test_each_channel_has_its_colour_and_uncertainty_is_pale():
    env = gymnax_wrappers.make("Breakout-MinAtar")
    names = list(MINATAR[env.name].values())
    x = np.zeros((1, 6, 4))
    x[0, :4] = 255 * np.eye(4)
    x[0, 5, 1] = 255 * 0.5
    colours, ground = observations.coloured(env, x)[0], np.array(ImageColor.getrgb(GROUND))
    assert [tuple(colour) for colour in colours[:4]] == [ImageColor.getrgb(name) for name in names]
    np.testing.assert_array_equal(colours[4], ground)
    middle = (ground + ImageColor.getrgb(names[1])) / 2
    np.testing.assert_allclose(colours[5], middle, atol=1)


def test_three_channels_without_a_meaning_are_red_green_and_blue():
    env = gymnax_wrappers.make("Pong-misc")
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    np.testing.assert_allclose(observations.coloured(env, x), x, atol=1)


def test_differences_go_from_white_to_red():
    true, guess = np.zeros((1, 3, 2)), np.array([[[0, 0], [0, 255], [128, 0]]])
    found = observations.differences(true, guess)[0]
    assert tuple(found[0]) == (255, 255, 255) and tuple(found[1]) == ImageColor.getrgb(VERMILION)
    assert (found[1] <= found[2]).all() and (found[2] <= 255).all()


def test_every_action_of_a_known_environment_has_a_name_and_others_have_numbers(of_gymnax):
    for name in filter(of_gymnax, names.ACTIONS):
        assert len(names.ACTIONS[name]) == gymnax_wrappers.make(name).action_size, name
    assert names.actions(gymnax_wrappers.make("DeepSea-bsuite")) == ["action 0", "action 1"]


@pytest.mark.parametrize("name, part, moves", [
    ("CartPole-v1", "x_dot", {"left": -1, "right": 1}),
    ("MountainCar-v0", "velocity", {"left": -1, "right": 1}),
    ("Catch-bsuite", "paddle_x", {"left": -1, "stay": 0, "right": 1}),
    ("FourRooms-misc", "pos", {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}),
    ("Asterix-MinAtar", "player_x", {"left": -1, "up": 0, "right": 1, "down": 0}),
    ("Breakout-MinAtar", "pos", {"stay": 0, "left": -1, "right": 1}),
    ("SpaceInvaders-MinAtar", "pos", {"stay": 0, "left": -1, "right": 1, "fire": 0}),
    ("Seaquest-MinAtar", "sub_y", {"stay": 0, "down": 1}),  # it starts at the surface
    ("Freeway-MinAtar", "pos", {"stay": 0, "up": -1}),
])
def test_an_action_moves_the_agent_as_its_name_says(name, part, moves):
    env, state, _ = _start(name)
    if name == "Freeway-MinAtar":
        state = state.replace(move_timer=np.int32(0))
    if name == "FourRooms-misc":
        env = gymnax_wrappers.make(name, changes={"fail_prob": 0.0})
        state = state.replace(pos=np.array([3, 3]))
    state, before = jax.tree.map(jnp.asarray, state), np.asarray(getattr(state, part))
    force = name in ("CartPole-v1", "MountainCar-v0")  # only the direction is known
    for action, way in moves.items():
        number = names.actions(env).index(action)
        after, _ = advance(env, jax.random.key(0), state, np.int32(number))
        moved = np.asarray(getattr(after, part)) - before
        np.testing.assert_array_equal(np.sign(moved) if force else moved, way, action)
