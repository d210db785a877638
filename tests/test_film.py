"""A film shows the right steps in order, including the last one, or is not written."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from utils.pictures import film, window
from utils.run import files

pytestmark = pytest.mark.filterwarnings("error")


def _episode(length, actions=2):
    """Row t's picture has the grey level 20 t; nothing else changes."""
    frames = [np.full((30, 30, 3), 20 * t % 256, np.uint8) for t in film.steps(length)]
    even = np.full((length, actions), 1.0 / actions)
    return film.Episode(frames, np.ones(length), np.zeros(length), even, _names(actions))


def _names(actions):
    return [f"action {n}" for n in range(actions)]


def _filmed(path, episode):
    """The written frames [N, H, W, 3] and how long each is shown, ms."""
    film.save(path, "Catch: return 1", episode)
    frames, durations = [], []
    with Image.open(path) as movie:
        for index in range(movie.n_frames):
            movie.seek(index)
            frames.append(np.asarray(movie.convert("RGB")))
            durations.append(movie.info["duration"])
    return np.stack(frames), durations


def test_a_film_has_a_frame_for_every_step_and_pauses_on_the_last(tmp_path):
    frames, durations = _filmed(tmp_path / "a.gif", _episode(12))
    assert frames.shape == (12, film.HEIGHT, film.HEIGHT + film.WIDTH, 3)
    levels = frames[:, 100, 100, 0].astype(int)
    np.testing.assert_allclose(levels, 20 * np.arange(12), atol=3)
    assert durations == [film.SLOW_PACE] * 11 + [film.LAST]


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 200, 201, 999, 10_000])
def test_long_episodes_are_thinned_evenly_and_keep_their_last_step(length):
    steps = film.steps(length)
    assert steps[-1] == length - 1 and 0 <= steps[0] < np.ceil(length / film.FRAMES)
    assert len(np.unique(np.diff(steps))) <= 1
    most = film.FRAMES
    assert len(steps) == length if length <= most else most / 2 < len(steps) <= most


def test_a_thinned_film_shows_the_right_picture_of_each_step(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "FRAMES", 4)
    frames, _ = _filmed(tmp_path / "a.gif", _episode(11))
    levels = frames[:, 100, 100, 0].astype(int)
    np.testing.assert_allclose(levels, 20 * np.array([1, 4, 7, 10]), atol=3)


def test_the_pace_is_25_frames_a_second_and_slower_for_short_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(film, "LENGTH", 40 * 5)
    assert _filmed(tmp_path / "a.gif", _episode(6))[1] == [40] * 5 + [film.LAST]
    assert _filmed(tmp_path / "a.gif", _episode(2))[1] == [100, film.LAST]


def test_only_the_marker_moves_over_the_panels_evenly_from_edge_to_edge(tmp_path):
    frames, _ = _filmed(tmp_path / "a.gif", _episode(9))
    panels = frames[:, :, film.HEIGHT:].astype(int)
    still = np.median(panels, 0)  # at every place the marker is away most of the time
    moved = np.abs(panels - still).max(-1) > 60
    columns = [np.flatnonzero(frame.sum(0) > film.HEIGHT / 4) for frame in moved]
    assert all(len(found) == 2 for found in columns[1:]), "two pixels wide"
    steps = np.diff([found.mean() for found in columns])
    np.testing.assert_allclose(steps, steps.mean(), atol=1.1)
    assert columns[-1][0] - columns[0][0] > 0.7 * film.WIDTH
    for frame, found in zip(moved[1:], columns[1:]):  # the first is on the axis
        assert frame.sum() == frame[:, found].sum(), "nothing else changes"


def test_rare_colours_keep_an_entry_in_the_palette(tmp_path):
    episode = _episode(12)
    rare = np.random.default_rng(0).integers(0, 256, (12, 3), np.uint8)
    for frame, colour in zip(episode.frames, rare):
        frame[:], frame[:3, :3] = 255, colour
    frames, _ = _filmed(tmp_path / "a.gif", episode)
    np.testing.assert_allclose(frames[:, 12, 12].astype(int), rare, atol=4)
    assert (frames[:, 200, 200] == 255).all()


def test_an_episode_of_one_step_is_a_film_too(tmp_path):
    frames, _ = _filmed(tmp_path / "a.gif", _episode(1))
    assert len(frames) == 1


def _axes(episode, moves=False):
    axes = Figure().subplots(3)
    lines = window.lines(episode.names, episode.policy, episode.actions)
    film._draw(axes, episode, lines, moves)
    return axes


def test_the_panels_hold_reward_value_and_one_line_for_each_action():
    random = np.random.default_rng(0)
    rewards, values, policy = random.random(5), random.random(5), random.random((5, 3))
    axes = _axes(film.Episode([], rewards, values, policy, ("left", "stay", "right")))
    expected = [[rewards], [values], list(policy.T)]
    for ax, numbers in zip(axes, expected, strict=True):
        np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], numbers)
    assert [ax.get_title("left") for ax in axes] == [
        "reward", "value estimate", "probability of each action"]
    legend = [text.get_text() for text in axes[2].get_legend().get_texts()]
    assert legend == ["left", "stay", "right"]
    assert axes[2].get_xlabel() == "step of the episode" and axes[2].get_xlim() == (0, 4)
    low, high = axes[2].get_ylim()
    assert low < 0 and high > 1


def test_continuous_actions_are_dots_around_the_line_of_their_mean_clipped_as_in_the_environment():
    means, actions = np.zeros((4, 2)), np.full((4, 2), 1.7)
    episode = film.Episode([], means[:, 0], means[:, 0], means, _names(2), actions)
    lines = _axes(episode)[2].lines
    assert [(line.get_linestyle(), line.get_marker()) for line in lines] == 2 * [
        ("-", "None"), ("None", ".")]
    assert [line.get_ydata().mean() for line in lines] == [0, 1, 0, 1]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()


@pytest.mark.parametrize("actions", [1, 6, 11, 1000])
def test_every_line_has_its_own_colour_and_the_legend_is_inside_the_film(actions):
    episode, figures = _episode(3, actions), []
    lines = window.lines(episode.names, episode.policy)
    film.draw_panels((film.WIDTH, film.HEIGHT), "Catch", 3, 3, lambda axes: figures.append(
        film._draw(axes, episode, lines, False) or axes[2]))
    ax = figures[0]
    assert len({line.get_color() for line in ax.lines}) == min(actions, window.SHOWN + 1)
    np.testing.assert_allclose(sum(line.get_ydata() for line in ax.lines), 1.0)
    box = ax.get_legend().get_window_extent()
    assert 0 <= box.x0 and box.x1 <= film.WIDTH and 0 <= box.y0 and box.y1 <= film.HEIGHT


def test_of_many_actions_the_likely_ones_are_shown_and_the_sum_of_the_others():
    policy = np.full((5, 20), 0.02)
    policy[:, 13] = 0.62
    shown = window.lines(_names(20), policy)
    assert "action 13" in [line.label for line in shown] and shown[-1].label == "14 others"
    np.testing.assert_allclose(shown[-1].values, 14 * 0.02)


def test_a_long_episode_shows_the_last_steps_of_the_policy_up_to_the_present():
    policy = np.zeros((400, 2))
    policy[:200, 0] = policy[200:, 1] = 1.0  # the first action until step 200
    shown = window.lines(("a", "b"), policy)
    panel = window.Window((10, 20, 310, 120), shown)
    first = []
    for t in (199, 225, 399):
        image = Image.new("RGB", (320, 140), "black")
        panel.paste(image, (0, 0), t)
        top = np.asarray(image)[22:27, 10:310].astype(int)
        blue = (top[..., 2] > top[..., 0] + 60).any(0)  # the first action at the top
        first.append(blue.mean())
    np.testing.assert_allclose(first, [1.0, 23 / 49, 0.0], atol=0.03)
    axes = _axes(film.Episode([], policy[:, 0], policy[:, 0], policy, ("a", "b")), moves=True)
    assert axes[2].get_title("left") == "probability of each action, last 50 steps"
    assert axes[1].get_xlim() == (0, 399) and axes[1].get_xlabel() == "step of the episode"


def test_a_write_that_fails_leaves_the_old_film_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "replace", mock.Mock(side_effect=OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        film.save(path, "Catch", _episode(3))
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def test_a_missing_picture_is_an_error_and_writes_nothing(tmp_path):
    episode = _episode(4)
    with pytest.raises(ValueError):
        film.save(tmp_path / "a.gif", "Catch", episode._replace(frames=episode.frames[1:]))
    assert not list(tmp_path.iterdir())


def test_importing_the_film_does_not_import_matplotlib():
    code = "import sys, utils.pictures.film; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)
