"""The figures of Dreamer 4 in words and pictures, and the baselines that stand beside them."""

import io
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from utils.core import config as configuration
from utils.dreamer4 import baselines, figures, pictures, square
from utils.dreamer4.progress import Progress
from utils.dreamer4.settings import PHASES, Config

ROOT = Path(__file__).parent.parent
CONFIG = configuration.load(ROOT / "dreamer4.yaml", Config)


def test_figures_are_in_one_order_whatever_the_number_of_steps():
    found = {"wrong_actions": 1, "psnr_k16": 2, "psnr_k4": 3, "psnr_k1": 4, "first_k4": 5}
    assert [*figures.in_order(found)] == [
        "psnr_k1", "psnr_k4", "psnr_k16", "first_k4", "wrong_actions"]
    assert figures.said("psnr_k16", 24.128) == "dreamed frames, K = 16 24.13 dB"
    assert figures.said("return_greedy", -32.04) == "real return, greedy -32.0"


def test_the_table_names_each_phase_once_and_has_the_baselines_beside_their_figure():
    results = {"tokenizer": {"figures": {"psnr": 28.65, "psnr_masked": 26.0},
                             "baselines": {"psnr": {"best constant": 12.94}}}}
    head, first, second = figures.table(results)
    assert head.startswith("phase") and first.startswith("1 tokenizer  held-out images")
    assert first.endswith("28.65 dB    best constant 12.94") and second.endswith("26.00 dB")
    assert second.startswith(" " * 13)


@pytest.mark.parametrize("value", [None, 18.1])
def test_progress_is_a_line_and_a_panel_with_the_baselines(value):
    progress = Progress("dynamics", 1200, 4000, 3700, "psnr_k4", value,
                        {"last frame repeated": 12.0}, 20.4, 61.0, 140.0)
    line, text = progress.line(), io.StringIO()
    Console(file=text, width=66).print(progress.panel(""))
    for word in ("2 dynamics", "1,200 / 4,000", "20", "1:01", "2:20"):
        assert word in line and word in text.getvalue()
    assert "last frame repeated" in text.getvalue() and "12.00" in text.getvalue()
    assert ("18.10" in line) == ("18.10" in text.getvalue()) == (value is not None)


def test_what_can_be_known_of_the_next_action_is_what_counting_gives():
    nll, accuracy = baselines.bounds(CONFIG.world)  # holds of 1 to 6 steps, 21 places in them
    assert accuracy["last action known"] == pytest.approx(15 / 21)
    assert accuracy["whole past known"] == pytest.approx(15 / 21 + 1 / 21 / 3)
    places = [(length, n) for length in range(1, 7) for n in range(1, length + 1)]
    entropy = 0.0
    for _, n in places:
        stays = np.mean([long > n for long in range(n, 7)])
        chances = [stays, *[(1 - stays) / 3] * 3]
        entropy -= sum(p * np.log(p) for p in chances if p) / len(places)
    assert nll["whole past known"] == pytest.approx(entropy)
    assert nll["last action known"] > nll["whole past known"]


def test_baselines_of_images_and_dreams_are_those_of_a_known_video():
    x = np.zeros((1, 16, 4, 4, 3), np.uint8)
    x[..., :2, :2, :] = 255  # a quarter of the image, always the same
    videos = square.Videos(x=x, a=np.zeros((1, 16), int), r=np.zeros((1, 16)),
                           q=np.zeros(1, int), labelled=np.ones(1, bool))
    found = baselines.images(CONFIG, videos, None)["psnr"]
    assert found["background only"] == pytest.approx(-10 * np.log10(0.25))
    assert found["best constant"] == pytest.approx(-10 * np.log10(0.25 * 0.75))
    repeated = baselines.dreams(CONFIG, videos, None)["psnr_k4"]["last frame repeated"]
    assert repeated > 90


def test_the_best_policy_earns_more_than_the_recorded_one_and_random_actions():
    for phase in PHASES[2:]:
        videos = square.videos(jax.random.key(0), CONFIG.world, 8)
        found = baselines.baselines(CONFIG, phase, videos, jax.random.key(1))["return_greedy"]
        assert float(found["best"]) > -40 > -110 > max(float(found["random"]), float(found["data"]))


def test_the_centre_of_a_square_is_found_in_its_image():
    x = np.zeros((2, 3, 8, 8, 3), np.uint8)
    x[0, :, 1:4, 2:5] = 200
    x[1, :, 0:2, 6:8] = (1, 2, 3)
    np.testing.assert_allclose(pictures.centres(x)[:, 0], [[2.5, 3.5], [1.0, 7.0]])


def test_series_count_the_updates_of_their_own_phase():
    rows = [{"step": 4, "tokenizer/eval/psnr": 1.0}, {"step": 12, "dynamics/eval/psnr_k4": 2.0}]
    assert pictures.series(rows, "dynamics/eval/", 8) == {"psnr_k4": ([4], [2.0])}
