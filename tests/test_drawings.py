"""Pictures of environments agree with their states, in true proportions."""

import functools
from types import SimpleNamespace

import gymnax
import jax
import numpy as np
import pytest
from PIL import ImageColor

import gymnax_wrappers
from utils.pictures import drawings
from utils.pictures.drawings import (
    BLUE,
    GREEN,
    GROUND,
    INK,
    MINATAR,
    ORANGE,
    SIZE,
    VERMILION,
    WALL,
    draw,
)

NAMES = [name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"]
MIDDLE = (SIZE - 1) / 2
make = functools.cache(gymnax_wrappers.make)


def _is(picture, colour):
    return (picture == ImageColor.getrgb(colour)).all(-1)


def _centre(picture, colour):
    """Mean (x, y) of the pixels of a colour, y upwards, from the middle of the picture."""
    rows, columns = np.nonzero(_is(picture, colour))
    return np.array([columns.mean() - MIDDLE, MIDDLE - rows.mean()])


def _pixel(picture, board, place):
    """The pixel in the middle of cell (row, column) of a board of this shape."""
    cell = SIZE / 1.04 / max(board)
    row, column = (SIZE / 2 + (np.array(place) - (np.array(board) - 1) / 2) * cell).astype(int)
    return "#{:02X}{:02X}{:02X}".format(*picture[row, column])


def _drawn(name, x=None, state=None):
    return draw(make(name), state and SimpleNamespace(**state), x)


@functools.partial(jax.jit, static_argnums=0)
def begin(env, key):
    """The first state of an episode, and its observation."""
    x, state = env.env.reset_env(key, env.params)
    return state, env.observation(x)


@functools.partial(jax.jit, static_argnums=0)
def advance(env, key, state, action):
    """Gymnax's own step, which compiles in half the time of the wrapper's with its reset."""
    x, state, *_ = env.env.step_env(key, state, action, env.params)
    return state, env.observation(x)


def _play(env, steps):
    """The moments (state, x) of an episode with random actions."""
    moments, random = [jax.device_get(begin(env, jax.random.key(0)))], np.random.default_rng(0)
    for key in jax.random.split(jax.random.key(1), steps):
        action = np.int32(random.integers(env.action_size))
        if not env.discrete:
            action = random.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        moments.append(jax.device_get(advance(env, key, moments[-1][0], action)))
    return moments


@pytest.mark.parametrize("name", NAMES)
def test_every_environment_is_drawn_and_its_picture_changes_over_time(name):
    env = make(name)
    pictures = [draw(env, *moment) for moment in _play(env, 8)[::4]]
    for picture in pictures:
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
        counts = np.unique(picture @ (65536, 256, 1), return_counts=True)[1]
        assert len(counts) > 3 and counts.max() < 0.99 * SIZE**2
    same = all((picture == pictures[0]).all() for picture in pictures)
    assert same == (name == "SimpleBandit-bsuite"), "that bandit alone always looks the same"


def test_every_drawing_belongs_to_an_environment_of_gymnax():
    assert set(drawings.DRAWERS) <= set(NAMES)


@pytest.mark.parametrize("x", [-2.0, -0.4, 0.0, 2.0])
def test_the_cart_is_drawn_at_its_position_between_the_ends_of_the_track(x):
    picture = _drawn("CartPole-v1", state={"x": x, "theta": 0.0})
    posts = np.nonzero(_is(picture, VERMILION))[1] - MIDDLE
    share = _centre(picture, BLUE)[0] / posts[posts > 0].mean()
    np.testing.assert_allclose(share, x / 2.4, atol=0.01)


@pytest.mark.parametrize("theta", [-0.2, -0.05, 0.0, 0.1, 0.2])
def test_the_pole_leans_to_the_right_by_theta(theta):
    picture = _drawn("CartPole-v1", state={"x": 1.0, "theta": theta})
    up, right = np.nonzero(_is(picture, ORANGE))
    slope = np.polyfit(-up, right, 1)[0]
    np.testing.assert_allclose(np.arctan(slope), theta, atol=0.01)


@pytest.mark.parametrize("theta", [0.0, 0.7, np.pi / 2, np.pi, -2.0, 7.0])
def test_the_pendulum_is_upright_at_zero_and_turns_counter_clockwise(theta):
    picture = _drawn("Pendulum-v1", state={"theta": theta, "last_u": 0.0})
    x, y = _centre(picture, BLUE)
    np.testing.assert_allclose(np.exp(1j * np.arctan2(-x, y)), np.exp(1j * theta), atol=0.02)


def test_the_arc_of_the_torque_has_its_direction_and_grows_with_it():
    pictures = [_drawn("Pendulum-v1", state={"theta": np.pi, "last_u": u})
                for u in (-1.0, 0.0, 0.5, 1.0)]
    right, none, short, left = ([_is(picture, ORANGE).sum(), picture] for picture in pictures)
    assert none[0] == 0 < short[0] < left[0]
    assert _centre(left[1], ORANGE)[0] < 0 < _centre(right[1], ORANGE)[0]


def test_the_acrobats_tip_is_above_the_line_where_gymnax_ends_the_episode():
    env, angles = make("Acrobot-v1"), np.random.default_rng(0).uniform(-np.pi, np.pi, (2, 25))
    states = SimpleNamespace(joint_angle1=angles[0], joint_angle2=angles[1])
    over = env.env.is_terminated(states, env.params)
    heights = -np.cos(angles[0]) - np.cos(angles.sum(0))
    for first, second, height, ended in zip(*angles, heights, over):
        picture = _drawn(env.name, state={"joint_angle1": first, "joint_angle2": second})
        above = _centre(picture, ORANGE)[1] - _centre(picture, GREEN)[1]
        np.testing.assert_allclose(above, (height - 1) * SIZE / 4.6, atol=2.0)
        assert abs(above) < 3 or (above > 0) == ended


@pytest.mark.parametrize("name", ["MountainCar-v0", "MountainCarContinuous-v0"])
def test_the_car_is_on_the_hill_and_reaches_the_flag_at_the_goal(name):
    goal, scale = make(name).params.goal_position, SIZE / (1.06 * 1.8)
    for position in (-1.1, -0.9, -np.pi / 6, 0.0, 0.3, goal):
        picture = _drawn(name, state={"position": position})
        x, y = _centre(picture, BLUE) / scale + (-0.3, 0.5)
        hill, slope = np.sin(3 * position) * 0.45 + 0.55, np.arctan(1.35 * np.cos(3 * position))
        middle = 0.08  # of the car's body, above the ground
        np.testing.assert_allclose(x, position - middle * np.sin(slope), atol=0.02)
        np.testing.assert_allclose(y, hill + middle * np.cos(slope), atol=0.02)
    assert abs(_centre(picture, INK)[0] / scale - 0.3 - goal) < 0.03


@pytest.mark.parametrize("name", MINATAR)
def test_every_channel_of_minatar_has_its_colour_and_no_other_hides_it(name):
    env, colours = make(name), list(MINATAR[name].values())
    assert len(set(colours)) == len(colours) == env.x_shape[-1]
    x = np.zeros(env.x_shape, np.uint8)
    for channel in range(len(colours)):
        x[channel, 7 - channel // 2, channel] = x[9, 9, channel] = 255
    picture = draw(env, None, x)
    for channel, colour in enumerate(colours):
        assert _pixel(picture, (10, 10), (channel, 7 - channel // 2)) == colour
        corner = picture[-40:, -40:]
        assert _is(corner, colour).sum() > 5, f"channel {channel} is hidden"
    assert _pixel(picture, (10, 10), (0, 0)) == GROUND


def test_minatar_as_a_vector_looks_the_same():
    image, vector = (make("Breakout-MinAtar", kind) for kind in ("image", "vector"))
    x = np.random.default_rng(0).random(image.x_shape) < 0.1
    pictures = [draw(image, None, np.uint8(255 * x)), draw(vector, None, np.float32(x.reshape(-1)))]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("name", ["FourRooms-misc", "MetaMaze-misc"])
def test_a_maze_has_its_walls_its_goal_and_the_agent_where_the_state_says(name):
    walk = np.asarray(make(name).env.env_map)
    picture = _drawn(name, state={"pos": np.array([4, 1]), "goal": np.array([8, 9])})
    expected = np.where(walk, GROUND, WALL)
    expected[4, 1], expected[8, 9] = BLUE, GREEN
    for place in np.ndindex(walk.shape):
        assert _pixel(picture, walk.shape, place) == expected[place]


def test_the_frozen_lake_shows_holes_goal_and_agent():
    picture = _drawn("FrozenLake-misc", state={"position": 6})
    seen = {place: _pixel(picture, (4, 4), place) for place in np.ndindex(4, 4)}
    holes = {place for place, colour in seen.items() if colour == INK}
    assert holes == {(1, 1), (1, 3), (2, 3), (3, 0)}
    assert (seen[3, 3], seen[1, 2]) == (GREEN, BLUE)


def test_the_agent_is_visible_in_a_hole_of_the_frozen_lake():
    assert _pixel(_drawn("FrozenLake-misc", state={"position": 5}), (4, 4), (1, 1)) == BLUE


def test_the_ball_falls_towards_the_paddle():
    picture = _drawn("Catch-bsuite", state={
        "ball_x": 1, "ball_y": 6, "paddle_x": 3, "paddle_y": 9})
    assert _pixel(picture, (10, 5), (6, 1)) == ORANGE
    assert _pixel(picture, (10, 5), (9, 3)) == BLUE
    assert _pixel(picture, (10, 5), (9, 1)) == GROUND


@pytest.mark.parametrize("row, column", [(0, 0), (5, 2), (7, 7), (8, 6)])
def test_the_diver_sinks_one_row_per_step_down_to_the_sea_bed(row, column):
    picture = _drawn("DeepSea-bsuite", state={"row": row, "column": column})
    assert _pixel(picture, (9, 8), (row, column)) == BLUE
    assert _is(picture, GREEN).any(), "the treasure is never hidden"


def test_pongs_ball_and_paddles_are_where_the_agent_sees_them():
    env = make("Pong-misc")
    state = SimpleNamespace(paddle_centers=np.array([5.0, 20.0]), ball_position=np.array([-2, 31]),
                            last_ball_position=np.array([1, 30]))
    see = jax.jit(lambda leaves: env.env.get_obs(SimpleNamespace(**leaves)))
    seen, picture = np.asarray(see(vars(state))), draw(env, state, None)
    for channel, colours in enumerate([(BLUE, drawings.GREY), (VERMILION,), (drawings.PALE,)]):
        for place in np.argwhere(seen[..., channel]):
            assert _pixel(picture, (30, 40), place) in colours
    assert _centre(picture, BLUE)[0] < 0 < _centre(picture, BLUE)[1], "the agent's is at the left"


def test_the_reachers_tip_agrees_with_its_reward():
    state = {"angles": np.array([0.5, 2.5]), "goal_xy": np.array([-1.5, -1.0])}
    picture = _drawn("Reacher-misc", state=state)
    apart = (_centre(picture, ORANGE) - _centre(picture, GREEN)) * 4.6 / SIZE
    tip = np.array([np.cos([0.5, 2.5]).sum(), np.sin([0.5, 2.5]).sum()])
    np.testing.assert_allclose(apart, tip - state["goal_xy"], atol=0.02)


@pytest.mark.parametrize("far", [0.3, 1.0, 2.2, 30.0])
def test_a_point_that_swims_far_out_stays_in_the_picture_and_the_rest_in_sight(far):
    robot = {"pos": np.array([far, -far]), "goal": np.array([0.0, 1.0])}
    swimmer = {"xy": np.array([far, -far]), "goal_xy": np.array([0.0, 0.5]),
               "urchin_xys": np.array([[-0.5, 0.5]])}
    for name, state in (("PointRobot-misc", robot), ("Swimmer-misc", swimmer)):
        picture = _drawn(name, state=state)
        x, y = _centre(picture, BLUE)
        assert 10 < x < MIDDLE and abs(x + y) < 1
        assert 0.09 * SIZE < _centre(picture, GREEN)[1] < 0.4 * SIZE, "no dot in the middle"
        assert (_is(picture, drawings.GREY).sum() > 20) == (far == 30.0), "says how far outside"


def _of_bars(low, high):
    """A stub for an environment of vectors with declared bounds."""
    return SimpleNamespace(
        name="Mine-v0", is_image=False, space=SimpleNamespace(low=low, high=high))


@pytest.mark.parametrize("low, high, seen, axis", [
    (-1.0, 1.0, (-0.5, 0.5), (-1, 1)),  # as declared
    (-1.0, 1.0, (-3.0, 2.0), (-3, 2)),  # the observations do not keep the bounds
    (-np.inf, np.inf, (1.0, 4.0), (0, 4)),
    (-3.4e38, 3.4e38, (-2.0, 4.0), (-2, 4)),
    (0.0, 1e6, (1.0, 9.0), (0, 9)),  # bounds that would hide everything
])
def test_bars_have_the_declared_bounds_where_they_are_sensible(low, high, seen, axis):
    x = np.linspace(*seen, 200)[:, None].repeat(2, 1)
    found = drawings.bar_axis(_of_bars(low, high), x)
    np.testing.assert_allclose(found, axis, atol=0.1)


def test_entries_of_very_different_size_have_the_compressed_axis():
    x = np.linspace(-1, 1, 50)[:, None] * (1, 1000)
    assert drawings.bar_axis(_of_bars(-np.inf, np.inf), x) is None


def test_a_bar_on_a_linear_axis_reaches_to_its_number():
    picture = drawings.draw_seen(SimpleNamespace(is_image=False), np.array([0.5, 9.0]), (0.0, 1.0))
    columns = SIZE / 2 + (np.array([-0.25, 0.55])) * SIZE / 2.1
    heights = _is(picture, BLUE)[:, columns.astype(int)].sum(0) * 2.1 / SIZE / 1.9
    np.testing.assert_allclose(heights, [0.5, 1.0], atol=0.01)


def test_the_arrow_of_the_torque_has_a_label():
    pushed, free = (_drawn("Pendulum-v1", state={"theta": np.pi, "last_u": u}) for u in (1.0, 0.0))
    corner = np.s_[-40:, :180]
    assert _is(pushed[corner], drawings.GREY).sum() > 20 > _is(free[corner], drawings.GREY).sum()


def test_an_unknown_vector_becomes_bars_of_compressed_height():
    env = SimpleNamespace(name="Mine-v0", is_image=False)
    picture = draw(env, None, np.array([1.0, -1.0, 0.0, 1e6], np.float32))
    blue = _is(picture, BLUE)
    columns = SIZE / 2 + (np.arange(4) * 0.4 - 0.5) * SIZE / 2.1
    heights = blue[:, columns.astype(int)].sum(0) * 2.1 / SIZE
    np.testing.assert_allclose(heights, [0.5, 0.5, 0.01, 1.0], atol=0.015)
    up, down = blue[: SIZE // 2], blue[SIZE // 2:]
    assert up[:, int(columns[0])].sum() > 50 < down[:, int(columns[1])].sum()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_unknown_image_is_shown_unchanged(channels):
    env = SimpleNamespace(name="Mine-v0", is_image=True)
    x = np.random.default_rng(0).integers(0, 256, (6, 12, channels), np.uint8)
    picture = draw(env, None, x)
    seen = picture[SIZE // 4 + 15:3 * SIZE // 4:30, 15::30]
    expected = x if channels == 3 else x.mean(-1, keepdims=True).astype(np.uint8)
    np.testing.assert_array_equal(seen, np.broadcast_to(expected, (6, 12, 3)))
