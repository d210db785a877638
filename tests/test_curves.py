"""The plots contain the given numbers, and an empty run gives one without a warning."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure

from utils.core.config import load
from utils.core.settings import Config
from utils.pictures.figures import learning
from utils.run import curves
from utils.study import charts

pytestmark = pytest.mark.filterwarnings("error")
DEFAULT = load(Path(__file__).parent.parent / "dreamer.yaml", Config)
STEPS = np.arange(10, 110, 10)


def _noted(figure, save, drawn, path, format):
    drawn.append(figure)
    save(figure, path, format=format)


@pytest.fixture
def figures():
    """The figures that a test saves, in order; they are still written."""
    drawn = []
    write = partialmethod(_noted, Figure.savefig, drawn)
    with mock.patch.object(Figure, "savefig", write):
        yield drawn


def _lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


def _is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_the_running_mean_is_over_the_last_values_and_never_over_later_ones():
    np.testing.assert_allclose(curves.running_mean([1.0, 3.0, 5.0, 7.0], 2), [1.0, 2.0, 4.0, 6.0])
    np.testing.assert_allclose(curves.running_mean([4.0, 2.0], 20), [4.0, 3.0])


def test_the_mean_of_seeds_covers_only_the_steps_that_all_seeds_have():
    lines = [(0, [0, 10, 20], [0.0, 10.0, 20.0]), (1, [5, 15], [1.0, 3.0])]
    steps, mean, _ = curves.mean_curve(lines)
    np.testing.assert_array_equal(steps, [5, 10, 15])
    np.testing.assert_allclose(mean, [3.0, 6.0, 9.0])


@pytest.mark.parametrize("values, half", [
    ([7.0], 0.0),
    ([1.0, 3.0], 12.706),  # Student's t of one degree of freedom × √2 / √2
    ([1.0, 2.0, 3.0, 4.0, 5.0], 2.776 * (2.5 / 5) ** 0.5),
    ([0.0, 2.0] * 50, 1.96 * (100 / 99) ** 0.5 / 10),
])
def test_the_interval_of_the_mean_over_seeds_is_students_t(values, half):
    lines = [(seed, [0, 1], [value, value]) for seed, value in enumerate(values)]
    np.testing.assert_allclose(curves.mean_curve(lines)[2], half, rtol=1e-6)


def test_the_learning_curve_plots_the_given_values(tmp_path, figures):
    returns, means, halves = STEPS * 2.0, STEPS * 3.0, np.full(10, 7.0)
    losses = {"actor": (STEPS, -STEPS / 7), "critic": (STEPS, 1000.0 / STEPS**2)}
    path = tmp_path / "curve.png"
    curves.learning_curve(path, "Catch", (STEPS, returns), (STEPS, means, halves), losses, 250)
    top, actor, critic = figures[0].axes
    lines = _lines_of(top)
    np.testing.assert_array_equal(lines["training episode"].get_ydata(), returns)
    np.testing.assert_allclose(lines["mean of 20 episodes"].get_ydata()[-1], returns.mean())
    np.testing.assert_array_equal(lines["evaluation, 95% interval"].get_ydata(), means)
    assert set(lines["solved: 250"].get_ydata()) == {250}
    band = top.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (30 - 7, 300 + 7)
    np.testing.assert_array_equal(actor.lines[0].get_ydata(), -STEPS / 7)
    assert (actor.get_title(), actor.get_yscale()) == ("actor", "linear")
    assert (critic.get_title(), critic.get_yscale()) == ("critic", "log")
    assert top.get_xlim() == actor.get_xlim() == critic.get_xlim()
    assert figures[0].get_supxlabel() == "environment steps" and top.get_ylabel()
    assert _is_png(path)


def test_the_solved_line_is_drawn_only_if_it_is_given(tmp_path, figures):
    curves.learning_curve(tmp_path / "a.png", "Catch", (STEPS, STEPS), ([], [], []), {})
    assert sorted(_lines_of(figures[0].axes[0])) == ["mean of 20 episodes", "training episode"]


@pytest.mark.parametrize("solved", [None, 475])
def test_a_run_without_a_finished_episode_still_gets_a_plot(tmp_path, figures, solved):
    path = tmp_path / "empty.png"
    losses = {"actor": ([], []), "critic": ([5], [1.0])}
    curves.learning_curve(path, "Catch", ([], []), ([], [], []), losses, solved)
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["no episode has finished yet"]
    assert _is_png(path)


@pytest.mark.parametrize("solved", [None, 475])
def test_a_plot_without_seeds_is_still_made(tmp_path, figures, solved):
    curves.seeds_curve(tmp_path / "a.png", "Catch", [(0, [], [])], solved)
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["no evaluation yet"]


def test_a_few_seeds_are_distinguishable_and_their_mean_stands_out(tmp_path, figures):
    lines = [(seed, STEPS, STEPS + seed) for seed in range(4)]
    curves.seeds_curve(tmp_path / "seeds.png", "Catch", lines, 50)
    lines = _lines_of(figures[0].axes[0])
    seeds = [lines[f"seed {seed}"] for seed in range(4)]
    assert len({line.get_color() for line in [*seeds, lines["_mean"]]}) == 5
    np.testing.assert_allclose(lines["_mean"].get_ydata(), STEPS + 1.5)
    assert lines["_mean"].get_linewidth() > 2 * seeds[0].get_linewidth()
    legend = {text.get_text() for text in figures[0].legends[0].get_texts()}
    assert legend == {f"seed {seed}" for seed in range(4)}
    assert figures[0].axes[0].get_title("right") == "solved: 50"
    assert _is_png(tmp_path / "seeds.png")


def test_many_seeds_are_grey_and_the_band_stays_within_the_range_of_returns(tmp_path, figures):
    lines = [(seed, STEPS, np.where(STEPS < 50, 20.0, 500.0 - 90 * (seed == 3)))
             for seed in range(10)]
    curves.seeds_curve(tmp_path / "seeds.png", "Catch", lines)
    ax = figures[0].axes[0]
    assert {line.get_color() for line in ax.lines} == {curves.LIGHT, curves.BLUE}
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (20, 500) and not figures[0].legends
    assert [text.get_text().split("\n")[0] for text in ax.texts] == ["mean of 10 seeds"]


def _is_inside(figure):
    """Whether the legend is inside the figure."""
    box = figure.legends[0].get_window_extent()
    return 0 <= box.x0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height


@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_legend_of_a_study_is_inside_its_picture(tmp_path, figures, count):
    names = [f"Env-{n}" for n in range(count)]
    seeds = [{"seed": seed, "curve": [[0, 1.0], [10, 2.0]]} for seed in (0, 1)]
    charts.suite(tmp_path / "a.png", {name: {"seeds": seeds, "random": {"score": 0.0}}
                                      for name in names}, dict.fromkeys(names, 3.0))
    found = {"full": {"seeds": seeds}} | {name: {"seeds": seeds} for name in names}
    charts.ablations(tmp_path / "b.png", {"CartPole-v1": found})
    lines = [(seed, STEPS, STEPS + seed) for seed in range(1000, 1000 + min(4, count + 1))]
    curves.seeds_curve(tmp_path / "c.png", "Catch", lines)
    assert len(figures) == 3 and all(_is_inside(figure) for figure in figures)
    labels = {text.get_text() for text in figures[0].legends[0].get_texts()}
    assert labels == {"one seed", "mean", "random policy", "reference"}


@pytest.mark.parametrize("rest", [np.linspace(2.0, 1.0, 30), np.linspace(0.2, -0.1, 30)])
def test_a_first_value_far_away_does_not_flatten_the_loss_and_is_written_down(
        tmp_path, figures, rest):
    steps, values = np.arange(32), np.concatenate([[9.0, 8.5], rest])
    curves.learning_curve(tmp_path / "a.png", "Catch", ([], []), ([], [], []),
                          {"actor": (steps, values)})
    ax = figures[0].axes[1]
    low, high = ax.get_ylim()
    assert low < rest.min() and rest.max() < high < rest.max() + 0.2 * np.ptp(rest)
    assert [text.get_text() for text in ax.texts] == ["first 9"]


def test_without_outliers_the_whole_loss_is_shown(tmp_path, figures):
    losses = {"actor": (STEPS, STEPS / 10.0), "replay_critic": (STEPS, STEPS * 0.0)}
    curves.learning_curve(tmp_path / "a.png", "Catch", ([], []), ([], [], []), losses)
    actor, critic = figures[0].axes[1:]
    assert actor.get_ylim()[1] >= 10 and not [*actor.texts, *critic.texts]
    assert critic.get_title() == "critic on replayed rows"


ROW = {"step": 5, "charts/eval_return": 9.0, "charts/eval_interval": 1.0, "losses/actor": 1.0,
       "losses/critic": 1.0, "losses/replay_critic": 1.0, "losses/decoder": 1.0,
       "losses/prediction": 2.0}


def _saved(folder):
    """A run of one row."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(ROW) + "\n", "utf-8")
    (folder / "scores.jsonl").write_text('{"step": 4, "return": 8.0}\n', "utf-8")
    return folder


def test_a_run_of_the_world_model_alone_has_no_returns_and_no_untrained_losses(tmp_path, figures):
    settings = replace(DEFAULT.learning, beta_actor=0, beta_critic=0, beta_replay=0)
    runs = [_saved(tmp_path / f"seed-{n}") for n in (0, 1)]
    curves.draw_run(runs[0], "Catch", settings, 475)
    assert [ax.get_title() for ax in figures[0].axes] == ["prediction", "decoder"]
    assert "world model" in figures[0].get_suptitle()
    curves.draw_seeds(tmp_path, "Catch", runs, settings, 475)
    ax = figures[1].axes[0]
    assert ax.get_ylabel() == "prediction loss" and not ax.get_title("right")
    figure = Figure()
    learning(figure, [ROW], [], SimpleNamespace(learning=settings), 475)
    assert [ax.get_title("left") for ax in figure.axes] == ["prediction loss", "decoder loss"]


def test_losses_of_scale_zero_are_left_out_and_a_policy_keeps_its_returns(tmp_path, figures):
    settings = replace(DEFAULT.learning, beta_replay=0)
    curves.draw_run(_saved(tmp_path / "run"), "Catch", settings, 475)
    assert [ax.get_title() for ax in figures[0].axes] == [
        "", "prediction", "decoder", "critic", "actor"]


def test_importing_the_plots_does_not_import_matplotlib():
    code = "import sys, utils.run.curves; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True)
