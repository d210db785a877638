"""The report as its reader sees it: command, figures, page, and the quality of imagination.

The slow group trains the first lesson of docs/imagination.md and holds its world model to its
promises; the other tests look at the report of a world model that has learned for seconds.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import dreamer
from tests import pages
from tests.test_commands import _run_of
from utils import report
from utils.agent import Agent
from utils.core.machine import machine
from utils.pictures import figures, page, studies
from utils.pictures.page import CAPTIONS
from utils.run import arrays

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "dreams.json"
LESSON = {"open-loop.png", "imagined.png", "heads.png", "latents.png", "report.html"}
VOID = {"meta", "img", "link", "br", "hr", "input"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


class Lesson(NamedTuple):
    """A run of the first lesson, and the Material of its report."""

    run: Path
    material: studies.Material


def _lesson(run, *flags):
    """World model training with these flags."""
    assert dreamer.main(["--world-model-only", *flags, "--logdir", str(run)]) == 0
    return Lesson(run, studies.gather(Agent(run)))


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """A lesson of a few updates, with the two checkpoints that a figure needs, and all figures."""
    made = _lesson(tmp_path_factory.mktemp("lesson") / "run", "--preset", "debug",
                   "--steps", "640", "--set", "run.save_every=320")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "gather", lambda agent: made.material)
        assert report.write(made.run, tuple(CAPTIONS)) == 0
    return made


@pytest.fixture(scope="module")
def lesson(tmp_path_factory, in_full):
    """The first lesson."""
    with in_full():  # it trains for long
        return _lesson(tmp_path_factory.mktemp("lesson") / "run")


def test_the_lesson_makes_figures_2_to_5(brief, tmp_path, monkeypatch):
    shutil.copytree(brief.run, tmp_path / "run")
    monkeypatch.setattr(studies, "gather", lambda agent: brief.material)
    for name in CAPTIONS:
        made = report.Made((tmp_path / "run" / "report" / f"{name}.png",))
        monkeypatch.setitem(report.MAKERS, name, lambda *_, made=made: made)
    assert report.main([str(tmp_path / "run")]) == 0
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == LESSON


def test_the_lesson_trains_no_policy(brief):
    rows = [json.loads(line) for line in (brief.run / "metrics.jsonl").open()][:-1]
    assert all(0.68 < row["actor/entropy"] < np.log(2) + 1e-6 for row in rows)
    kept = arrays.load(brief.run / "weights.npz")
    assert not kept["critic/out/kernel"].any() and kept["world/reward/out/kernel"].any()


@pytest.mark.slow
def test_the_decoder_loses_most_of_its_loss(lesson):
    rows = [json.loads(line) for line in (lesson.run / "metrics.jsonl").open()][:-1]
    assert rows[-1]["losses/decoder"] < 0.2 * rows[0]["losses/decoder"]


@pytest.mark.slow
def test_an_open_loop_of_15_steps_is_better_than_a_third_of_both_baselines(lesson):
    scores = studies.open_loop(lesson.material).scores
    assert scores["imagined"] < min(scores["no change"], scores["the mean"]) / 3, scores


@pytest.mark.slow
def test_the_reward_head_predicts_the_true_rewards(lesson):
    true, predicted = studies.heads(lesson.material).pairs["reward"]
    assert set(np.unique(true)) == {0.0, 1.0}
    error = np.abs(true - predicted)
    assert error.mean() < 0.002  # 1 everywhere: 0.04
    # Not the largest: a pole that falls later than all in the replay is taken for a new episode.
    assert np.mean(error < 0.2) > 0.9995


@pytest.mark.slow
def test_the_continue_head_predicts_terminations(lesson):
    found = studies.heads(lesson.material)
    went_on, ended = found.probs
    assert len(ended) > 300 and ended.mean() < 0.5 and went_on.mean() > 0.97
    assert found.scores["continuation"] > 0.7
    often = found.calibration.rows > 100
    assert np.abs(found.calibration.predicted - found.calibration.happened)[often].max() < 0.15


def _command(folder, *flags):
    """Run the program as a user does, without a compilation cache: seconds that it took."""
    start, cold = time.perf_counter(), os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, ROOT / "dreamer.py", *flags, "--logdir", "run"],
                          cwd=folder, env=cold, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


@pytest.mark.slow
def test_the_first_lesson_takes_less_than_a_minute(tmp_path):
    start = time.perf_counter()
    _command(tmp_path, "--world-model-only")
    assert report.main([str(tmp_path / "run")]) == 0
    assert time.perf_counter() - start < 60
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == LESSON


@pytest.mark.slow
def test_a_trained_agent_imagines_15_steps_better_than_a_third_of_both_baselines(tmp_path):
    _command(tmp_path)
    material = studies.gather(Agent(tmp_path / "run"))
    scores, heads = studies.open_loop(material).scores, studies.heads(material)
    assert scores["imagined"] < min(scores["no change"], scores["the mean"]) / 3, scores
    assert min(heads.scores["reward"], heads.scores["continuation"]) > 0.6, heads.scores
    assert np.abs(np.subtract(*heads.pairs["reward"])).mean() < 0.01
    assert heads.scores["value"] > 0.4, heads.scores
    found = {"open loop, error over 15 steps": scores, "heads, correlation": heads.scores}
    rounded = {name: {key: round(value, 4) for key, value in part.items()}
               for name, part in found.items()}
    RESULTS.write_text(json.dumps(machine() | rounded, indent=1) + "\n", encoding="utf-8")


def test_a_page_states_the_open_loop_error_of_a_trained_agent():
    scores = json.loads(RESULTS.read_text(encoding="utf-8"))["open loop, error over 15 steps"]
    said = f"the error is {100 * scores['imagined'] / scores['no change']:.0f}% of"
    assert said in pages.text(), said


def test_all_seven_figures_are_made_and_large_enough_for_half_the_size(brief):
    folder = brief.run / "report"
    files = {path.name for path in folder.iterdir()}
    pictures = {f"{name}.png" for name in CAPTIONS if name != "dream"} | {"dream.gif"}
    assert files == pictures | {"report.html"}
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert picture.format == name[-3:].upper() and min(picture.size) >= 500
            assert picture.n_frames > 5 if name == "dream.gif" else True
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/") == len(pictures) and "Left out" not in text


def test_the_small_text_of_a_figure_is_10_pixels_high_on_a_phone():
    inches = 13 * 0.833 / 72  # of the style's font size, "small"
    picture = 360 - 2 * (8 + 8 + 8)  # pixels, without the paddings of page, section and picture
    assert round(inches * picture / figures.WIDTH) >= 10


class Checked(HTMLParser):
    """Reads a page: tags in and out, identifiers, links, pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.problems, self.all = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def values(self, name):
        """All values of an attribute."""
        return [attrs[name] for _, attrs in self.all if name in attrs]


def _check(text):
    found = Checked(text)
    tags = [tag for tag, _ in found.all]
    assert not found.problems and not found.open
    assert text.startswith("<!DOCTYPE html>") and found.all[0] == ("html", {"lang": "en"})
    assert [tags.count(tag) for tag in ("head", "title", "body", "h1", "main")] == [1] * 5
    assert ("meta", {"charset": "utf-8"}) in found.all and "viewport" in found.values("name")
    ids = found.values("id")
    assert len(ids) == len(set(ids)) and {f"#{name}" for name in ids} == set(found.values("href"))
    images = [attrs for tag, attrs in found.all if tag == "img"]
    assert all(image["src"].startswith("data:image/") for image in images)
    assert all(len(image["alt"]) > 20 and int(image["width"]) > 0 for image in images)
    assert "//" not in re.sub(r'src="[^"]*"', "", text), "no outside address"
    return images


def test_the_page_is_valid_html_with_a_text_for_every_picture_and_no_external_address(brief):
    text = (brief.run / "report" / "report.html").read_text(encoding="utf-8")
    assert len(_check(text)) == 7
    for caption in CAPTIONS.values():
        assert all(words.replace("'", "&#x27;") in text for words in caption)


def test_external_text_cannot_break_the_page():
    section = page.Section("x", 1, ("<b>", "a & b", '">'), found="<script>", left_out="<i>")
    text = page.write("</title>", "</p>", [section])
    assert not _check(text) and "<script>" not in text and "<b>" not in text


MEASURE = """<script>addEventListener("load", () => parent.postMessage({
  wide: document.documentElement.scrollWidth, window: innerWidth,
  pictures: [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().right]),
  small: Math.min(...[...document.querySelectorAll("p")].map(
    p => parseFloat(getComputedStyle(p).fontSize))),
  colours: [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]
}, "*"))</script>"""
FRAME = """<!DOCTYPE html><body><iframe src="page.html" width="{}" height="700"></iframe><script>
addEventListener("message", e => document.body.textContent = JSON.stringify(e.data))</script>"""


def _opened(report_page, folder, width, *flags):
    """Measurements of the page in a browser window of this width (in a frame: windows have a
    minimum width)."""
    text = report_page.read_text(encoding="utf-8")
    (folder / "page.html").write_text(text.replace("</body>", MEASURE + "</body>"), "utf-8")
    (folder / "frame.html").write_text(FRAME.format(width), "utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={folder / 'profile'}", "--window-size=1400,800",
         "--virtual-time-budget=10000", *flags, "--dump-dom", (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120)
    found = re.search(r"<body>(\{.*\})</body>", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(found.group(1))


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_loads_every_figure_and_nothing_overflows(width, brief, tmp_path):
    found = _opened(brief.run / "report" / "report.html", tmp_path, width)
    assert found["window"] == width and found["wide"] <= width
    assert len(found["pictures"]) == 7
    assert all(natural > 0 and right <= width for natural, right in found["pictures"])
    assert found["small"] >= 14, "pixels of the words"


def _light(colour):
    return np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]) > 128


@pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
def test_the_page_is_dark_where_the_reader_wants_it_dark(brief, tmp_path):
    path = brief.run / "report" / "report.html"
    for flags, light in ((), True), (("--blink-settings=preferredColorScheme=0",), False):
        ground, ink = _opened(path, tmp_path, 360, *flags)["colours"]
        assert (_light(ground), _light(ink)) == (light, not light)


def test_a_run_without_weights_gets_its_learning_curves_and_one_line(brief, tmp_path, capsys):
    for name in ("config.yaml", "metrics.jsonl", "scores.jsonl"):
        shutil.copy(brief.run / name, tmp_path)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 99')  # as a crash may leave it
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "weights.npz: does not exist yet" in said
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"learning.png",
                                                                      "report.html"}
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert len(_check(text)) == 1 and text.count("Left out") == 6


def test_an_unknown_environment_gets_one_line_and_its_learning_curves(brief, tmp_path, capsys):
    for name in ("metrics.jsonl", "scores.jsonl", "weights.npz"):
        shutil.copy(brief.run / name, tmp_path)
    text = (brief.run / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "config.yaml").write_text(text.replace("CartPole-v1", "CartPoll-v1"), "utf-8")
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "CartPoll-v1" in said
    assert (tmp_path / "report" / "learning.png").is_file()


@pytest.mark.parametrize("flags", [[], ["a", "b"], ["--fast"]])
def test_a_command_without_one_run_gets_one_line(flags, capsys):
    assert report.main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("utils.report: ") and said.count("\n") == 1


def test_a_folder_without_a_run_gets_one_line_and_nothing_is_written(tmp_path):
    done = subprocess.run([sys.executable, "-m", "utils.report", tmp_path], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr == f"utils.report: {tmp_path}: contains no run (no config.yaml)\n"


def test_images_and_short_episodes_are_imagined_too_and_missing_figures_are_reported(
        tmp_path, capsys):
    run = _run_of(tmp_path / "run", "Catch-bsuite")
    assert report.write(run, ("learning", "open-loop", "robustness")) == 0
    said = capsys.readouterr().err
    assert re.findall(r"^left out +(\S+): ", said, re.MULTILINE) == ["learning", "robustness"]
    assert {path.name for path in (run / "report").iterdir()} == {"open-loop.png", "open-loop.gif",
                                                                 "report.html"}
    text = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert len(_check(text)) == 2 and "5 observed steps, then 5 imagined, in 32 episodes" in text
    with Image.open(run / "report" / "open-loop.gif") as film:
        assert film.n_frames == 10


@pytest.mark.parametrize("flags, said", [
    (["--resume", "RUN"], "--world-model-only: cannot be used with --resume"),
    (["--seeds", "2"], "--world-model-only: cannot be used with --seeds"),
    (["--set", "learning.beta_critic=1"], "expected learning.beta_critic 0, found 1"),
    (["--config", "RUN/config.yaml"], "unknown preset 'world_model'"),
])
def test_flags_that_contradict_world_model_only_get_one_line(flags, said, brief, capsys):
    flags = [flag.replace("RUN", str(brief.run)) for flag in flags]
    assert dreamer.main(["--world-model-only", *flags]) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1
