"""The command around Dreamer 4: four phases, stop, resume, phases of another run, bad input."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import dreamer
import dreamer4
from utils import evaluate, report, watch
from utils.agent import Agent
from utils.core import config as configuration
from utils.core import settings
from utils.dreamer4 import command, phases
from utils.dreamer4.settings import PHASES, Config
from utils.run.checkpoint import Checkpoints
from utils.run.logger import read_rows

ROOT = Path(__file__).parent.parent
DEBUG = ["--config", str(ROOT / "dreamer4.yaml"), "--preset", "debug"]


LEFT = {"config.yaml", "metrics.jsonl", "results.json", "learning.png", "dreams.png",
        "policy.png", "film.gif", "checkpoints", "phases"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a debug run in a process of its own, and what the program printed.

    What it compiled, the runs in this process load."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    status, out, err = _by_a_user(*DEBUG, "--logdir", folder)
    assert (status, err) == (0, "")
    return folder, out


def _by_a_user(*flags):
    """The command in a process of its own: its status, and what it printed."""
    done = subprocess.run([sys.executable, ROOT / "dreamer4.py", *map(str, flags)],
                          capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    """Equal numbers give one Program, so that what one run compiles, the next one uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dreamer4, "build", functools.cache(dreamer4.build))
        yield


def _last(run):
    """The arrays of the last checkpoint."""
    return Checkpoints(run).load(pytest.fail).arrays


def _first_words(said):
    return {line.split(" ")[0] for line in said.splitlines()}


def _rows(run):
    """The rows of metrics.jsonl without times."""
    return [{name: value for name, value in row.items() if not name.startswith("time/")}
            for row in read_rows(Path(run) / "metrics.jsonl")]


def _assert_same_run(run, other):
    one, two = _last(run), _last(other)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], name)
    assert _rows(run) == _rows(other)


def test_a_debug_run_of_a_user_goes_through_all_phases_and_leaves_table_pictures_and_film(finished):
    folder, out = finished
    places = [out.index(f"phase        {number} {phase}: ")
              for number, phase in enumerate(PHASES, 1)]
    table = out[out.index("phase        figure"):]
    assert places == sorted(places)
    for words in ("background only", "last frame repeated", "whole past known", "random", "best"):
        assert words in table
    assert {*os.listdir(folder)} == LEFT
    with Image.open(folder / "film.gif") as film:
        assert film.n_frames == 7  # as long as an episode: longer than a video would be


def test_the_results_hold_the_figures_of_each_phase_and_their_baselines(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    assert list(results["phases"]) == list(PHASES) and results["seed"] == 0
    for phase, found in results["phases"].items():
        assert found["updates"] == getattr(_config().run, phase) and found["seconds"] > 0
        assert np.isfinite([*found["figures"].values()]).all()
        assert found["baselines"].keys() <= found["figures"].keys()


def _config():
    return configuration.load(ROOT / "dreamer4.yaml", Config, ["debug"])


class _Stopped(dreamer4.Session):
    """A run to which a signal comes during the chunk after which STEPS updates are done."""

    def log(self, count, metrics):
        due = super().log(count, metrics)
        if self.step == self.STEPS:
            self._stop.received = signal.SIGINT
        return due


class _Spoilt(dreamer4.Session):
    """A run in which the loss of update 6 is not finite."""

    def log(self, count, metrics):
        bad = {"losses/mse": np.array([0.1, np.nan])} if self.step == 4 else {}
        return super().log(count, metrics | bad)


def test_a_run_that_is_stopped_in_every_phase_ends_and_says_the_same_as_one_that_never_was(
        finished, tmp_path, monkeypatch, capsys):
    run, done, words = tmp_path / "run", 0, set()
    flags = [*DEBUG, "--logdir", str(run)]
    for phase in PHASES:
        with monkeypatch.context() as patch:
            patch.setattr(_Stopped, "STEPS", done + 2, raising=False)
            patch.setattr(dreamer4, "Session", _Stopped)
            assert dreamer4.main(flags) == 128 + signal.SIGINT
        said = capsys.readouterr().out
        words |= _first_words(said)
        assert re.search(rf"saved +step {done + 2}; to resume: .*dreamer4\.py --resume ", said)
        flags, done = ["--resume", str(run)], done + getattr(_config().run, phase)
    assert dreamer4.main(flags) == 0
    _assert_same_run(run, finished[0])
    words |= _first_words(capsys.readouterr().out)
    assert _first_words(finished[1]) == words - {"saved", "resuming"}
    assert {*os.listdir(run)} == LEFT
    assert dreamer4.main(flags) == 2
    assert "already finished all phases" in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["2", "policy"])
def test_a_run_that_begins_with_a_later_phase_ends_as_the_one_it_took_the_others_from(
        finished, tmp_path, phase, capsys):
    run = tmp_path / "later"
    assert dreamer4.main(["--phase", phase, "--run", str(finished[0]), "--logdir", str(run)]) == 0
    assert f"are those of {finished[0]}" in capsys.readouterr().out
    kept, old = (phases.load(folder, PHASES[-1])[0] for folder in (run, finished[0]))
    for name in old:
        np.testing.assert_array_equal(kept[name], old[name], name)
    assert {path.name for path in (run / "phases").iterdir()} == {
        path.name for path in (finished[0] / "phases").iterdir()}
    results = json.loads((run / "results.json").read_text("utf-8"))
    seconds = [one["seconds"] for one in results["phases"].values()]
    assert min(seconds) > 0 and sum(seconds) <= results["seconds"]


def test_what_the_phases_before_have_not_trained_may_have_another_size(finished, tmp_path):
    command = dreamer4.parse(["--phase", "2", "--run", str(finished[0]), "--logdir",
                              str(tmp_path / "run"), "--set", "dynamics.kmax=8",
                              "--set", "agent.bins=31"])
    program, shapes = dreamer4.build(command.config)
    session = dreamer4.Session(command, shapes, None)
    new = dreamer4.init.__wrapped__(program, session.key(0))
    state = session.restore(new)
    kept, old = phases.named(state), phases.load(finished[0], "tokenizer")[0]
    assert kept["params/dynamics/tau"].shape[0] == 8 != old["params/dynamics/tau"].shape[0]
    for name in old:
        of_new = name.startswith("params/") and not name.startswith("params/tokenizer/")
        np.testing.assert_array_equal(kept[name], phases.named(new)[name] if of_new else old[name])
    again, _ = phases.load(session.folder, "tokenizer")
    assert again.keys() == kept.keys() and again["params/dynamics/tau"].shape[0] == 8
    session.close()


def test_a_process_of_its_own_ends_with_the_status_and_the_line_of_the_command(finished):
    status, out, err = _by_a_user("--resume", finished[0])
    assert (status, out, err.count("\n")) == (2, "", 1) and "already finished all phases" in err


def test_a_run_that_fails_says_why_and_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dreamer4, "Session", _Spoilt)
    assert dreamer4.main([*DEBUG, "--logdir", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "dreamer4.py: losses/mse is not finite in update 6 of phase tokenizer"
    assert err[1].startswith("saved        step 4; to resume: ")


# ---- Commands on a run ---------------------------------------------------------------------------


def test_evaluate_measures_every_phase_on_new_data_and_appends_a_row(finished, capsys):
    folder, _ = finished
    assert evaluate.main([str(folder), "--seed", "5"]) == 0
    row = json.loads((folder / "evaluations.jsonl").read_text())
    assert row["seed"] == 5 and [*row][-4:] == list(PHASES)
    assert "4 policy" in capsys.readouterr().out


def test_the_figures_of_phase_3_are_those_of_the_policy_that_had_not_dreamed_yet(
        finished, monkeypatch):
    measure, seen = dreamer4.evaluate, {}
    monkeypatch.setattr(dreamer4, "evaluate", lambda program, phase, state, *others: (
        seen.update({phase: state.params}) or measure(program, phase, state, *others)))
    assert evaluate.main([str(finished[0]), "--seed", "5"]) == 0  # whose programs are compiled
    cloned, prior, dreamed = (jax.tree.leaves(weights) for weights in (
        seen["agent"]["policy"], seen["policy"]["prior"], seen["policy"]["policy"]))
    assert all(np.array_equal(one, other) for one, other in zip(cloned, prior, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(cloned, dreamed, strict=True))


def test_watch_films_the_world_beside_its_dream(finished, capsys):
    assert watch.main([str(finished[0])]) == 0
    assert "in the world" in capsys.readouterr().out
    with Image.open(finished[0] / "episode-0.gif") as film:
        assert film.n_frames == 7 and film.width == 600


def test_a_report_has_every_picture_and_one_of_a_part_says_what_is_missing(
        finished, tmp_path, capsys):
    folder, part = finished[0], tmp_path / "part"
    assert report.main([str(folder)]) == 0
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 4 and "Left out" not in page
    (part / "phases").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "phases/1-tokenizer.npz"):
        (part / name).write_bytes((folder / name).read_bytes())
    assert report.main([str(part)]) == 0
    page = (part / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 1 and page.count("Left out: ") == 3
    assert watch.main([str(part)]) == 2
    assert "has not finished phase 3 (agent)" in capsys.readouterr().err


# ---- Bad input -----------------------------------------------------------------------------------


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder -> its one line of output."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(dreamer4, "train", lambda *_: pytest.fail("began to train"))
    return functools.partial(_refused, capsys, dreamer4.main)


def _refused(capsys, main, *argv):
    capsys.readouterr()
    status, before = main([*argv]), {*os.listdir()}
    said = capsys.readouterr()
    assert (status, said.out, before) == (2, "", {*os.listdir()})
    assert said.err.count("\n") == 1, said.err
    return said.err


@pytest.mark.parametrize("flags, words", [
    (["--phase", "5", "--run", "x"], ["--phase", "1 (tokenizer)", "4 (policy)", "'5'"]),
    (["--phase", "2"], ["--phase 2", "add --run RUN"]),
    (["--run", "x"], ["--run", "--phase 2, 3 or 4"]),
    (["--phase", "2", "--run", "nowhere"], ["--run: nowhere: no such folder"]),
    (["--resume", "nowhere"], ["--resume: nowhere: no such folder"]),
    (["--resume", "x", "--phase", "2"], ["--phase: cannot be used with --resume"]),
    (["--env", "CartPole-v1"], ["--env: unknown flag"]),
    (["--preset", "debugg"], ["--preset", "'debugg'", "'debug'"]),
    (["--set", "tokenizer.widht=8"], ["tokenizer.widht", "unknown key", "'width'"]),
    (["--set", "tokenzer.width=8"], ["unknown section 'tokenzer'", "'tokenizer'"]),
    (["--set", "world.size=18"], ["world.size", "multiple of tokenizer.patch = 4", "18"]),
    (["--set", "dynamics.spatial=3"], ["dynamics.spatial", "divisor", "found 3"]),
    (["--set", "dynamics.kmax=12"], ["dynamics.kmax", "power of 2", "12"]),
    (["--set", "tokenizer.width=66"], ["tokenizer.width", "multiple", "66"]),
    (["--set", "run.policy=0"], ["run.policy", "at least 1", "found 0"]),
    (["--seed", "-1"], ["run.seed", "at least 0", "-1"]),
    (["--seed", "1", "--seed", "2"], ["--seed: is given 2 times"]),
])
def test_a_wrong_flag_or_value_is_named_with_the_expected_one(refuse, flags, words):
    line = refuse(*flags)
    assert line.startswith("dreamer4.py: ") and all(word in line for word in words), line


def _run_of_dreamer(folder):
    folder.mkdir()
    config = configuration.load(ROOT / "dreamer.yaml", settings.Config, ["debug"])
    (folder / "config.yaml").write_text(configuration.dump(config), encoding="utf-8")
    return str(folder)


def test_each_program_refuses_the_runs_of_the_other(finished, refuse, tmp_path, capsys):
    old, new = _run_of_dreamer(tmp_path / "old"), str(finished[0])
    for flags in (["--resume", old], ["--phase", "2", "--run", old]):
        assert "is a run of dreamer.py, expected a run of dreamer4.py" in refuse(*flags)
    line = _refused(capsys, dreamer.main, "--resume", new)
    assert "is a run of dreamer4.py, expected a run of dreamer.py" in line
    with pytest.raises(ValueError, match="is a run of dreamer4.py"):
        Agent(new)
    for main in (evaluate.main, watch.main):
        assert "--limit: is for runs of dreamer.py" in _refused(capsys, main, new, "--limit", "5")


def test_a_run_without_its_tokenizer_or_with_another_one_is_refused(finished, refuse, tmp_path):
    folder, empty = finished[0], tmp_path / "nothing"
    empty.mkdir()
    (empty / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    line = refuse("--phase", "2", "--run", str(empty))
    assert "has not finished phase 1 (tokenizer)" in line
    line = refuse("--phase", "2", "--run", str(folder), "--set", "tokenizer.adam=0.1")
    assert "trained its tokenizer with another tokenizer.adam: 0.004, found 0.1" in line
    line = refuse("--resume", str(folder), "--set", "dynamics.adam=0.1")
    assert "another dynamics.adam" in line and "only run.save_*" in line


def test_weights_beside_another_configuration_are_refused(finished, tmp_path, capsys):
    changed = tmp_path / "changed"
    (changed / "phases").mkdir(parents=True)
    path = phases.path_of(finished[0], PHASES[0])
    (changed / "phases" / path.name).write_bytes(path.read_bytes())
    text = (finished[0] / "config.yaml").read_text().replace("seed: 0", "seed: 1")
    (changed / "config.yaml").write_text(text)
    assert "belongs to another run" in _refused(capsys, evaluate.main, str(changed))


def test_the_papers_sizes_are_printed_and_too_large_for_this_machine(
        tmp_path, capsys, monkeypatch):
    """The tokenizer of the paper has 400 million weights, its dynamics 1.6 billion."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.run.memory.available", lambda: 8e9)
    assert dreamer4.main([*DEBUG[:2], "--preset", "paper"]) == 2
    said = capsys.readouterr()
    (line,) = re.findall(r"parameters   \d,\d{3},\d{3},\d{3}: (tokenizer .*)", said.out)
    sizes = {name: int(count.replace(",", ""))
             for name, count in (part.split(" ") for part in line.split(" · "))}
    assert sizes["tokenizer"] == pytest.approx(400e6, rel=0.02)
    assert sizes["dynamics"] == pytest.approx(1.6e9, rel=0.02)
    assert "needs at least" in said.err and said.err.count("\n") == 1 and not os.listdir()


@pytest.mark.parametrize("text, name", [("1", "tokenizer"), ("3", "agent"), ("policy", "policy")])
def test_a_phase_is_given_by_number_or_name(text, name):
    assert command.phase(text) == name
