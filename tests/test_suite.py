"""The runs behind the table of all environments: executed once, resumed, shown unchanged."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gymnax_wrappers
from tests import pages
from utils import suite
from utils.core import cli, config
from utils.core.references import REFERENCES, Reference
from utils.core.settings import Config
from utils.study import runs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs"
PROPOSED = RESULTS / "proposed"
# The settings that an environment's preset may change; all others are common.
OWN = {"run": {"steps", "envs", "train_ratio", "chunk", "eval_every", "eval_limit", "save_every"},
       "model": None, "learning": {"eta"}}
# Which η is not the default's: docs/differences.md, "Eta".
ETA = {"PointRobot-misc": 0.0003}
LESS = {"Acrobot-v1", "Pong-misc", "Asterix-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar",
        "SpaceInvaders-MinAtar"}  # besides continuous actions


@pytest.fixture
def tiny(tmp_path):
    """A configuration file whose defaults are those of `debug`, with a block of an environment."""
    settings = config.load(ROOT / "dreamer.yaml", Config, ["debug"], ["run.steps=300"])
    path = tmp_path / "tiny.yaml"
    block = "presets:\n  Catch-bsuite: {run: {steps: 320}}\n"
    path.write_text(config.dump(settings) + block, encoding="utf-8")
    return path


def call(tiny, *flags):
    """The command in this process, with its folders next to the configuration."""
    return suite.main(["--config", str(tiny), "--results", str(tiny.parent / "results"),
                       "--runs", str(tiny.parent / "runs"), *flags])


def _no_time(begun, run):
    """A stub for a successful run."""
    begun.append((run.config.run.env, run.config.run.seed))
    return 0


def _seed_as_score(run, folder):
    """A stub for the result of such a run."""
    return {"seed": run.run.seed, "mark": runs.fingerprint(run), "score": float(run.run.seed),
            "last": 0.0, "steps": 100, "updates": 10, "seconds": 60,
            "curve": [[50, 0.0], [100, float(run.run.seed)]]}


@pytest.fixture
def pretend(monkeypatch):
    """Fake runs whose score is their seed -> the runs started, in order"""
    begun = []
    monkeypatch.setattr(runs, "train", partial(_no_time, begun))
    monkeypatch.setattr(runs, "result", _seed_as_score)
    monkeypatch.setattr(suite, "random_policy", lambda run: {"score": -1.0, "episodes": 1,
                                                             "interval": 0.0})
    return begun


def test_seeds_are_averaged_with_the_interval_of_students_t(tiny, pretend):
    assert call(tiny, "--env", "Catch-bsuite", "--env", "DeepSea-bsuite", "--seeds", "3") == 0
    assert pretend == [(env, seed) for seed in range(3) for env in ("Catch-bsuite",
                                                                    "DeepSea-bsuite")]
    found = suite.read(tiny.parent / "results")
    assert list(found) == ["Catch-bsuite", "DeepSea-bsuite"]
    assert found["Catch-bsuite"]["score"] == 1.0
    assert found["Catch-bsuite"]["interval"] == pytest.approx(4.303 / 3**0.5, rel=1e-4)


def test_a_group_names_several_environments_each_once(tiny, pretend):
    assert call(tiny, "--group", "minatar", "--env", "Asterix-MinAtar", "--seeds", "1") == 0
    assert [env for env, _ in pretend] == suite.GROUPS["minatar"]
    assert len(suite.GROUPS["minatar"]) == 5 and len(suite.GROUPS["classic"]) == 4
    assert call(tiny, "--group", "atari") == 2


def test_groups_together_are_all_that_are_listed_and_the_four_of_a_textbook():
    parts = {name for group in ("classic", "minatar", "bsuite", "misc")
             for name in suite.GROUPS[group]}
    assert {name for name in suite.GROUPS["all"] if not name.startswith("MountainCar")} == parts


def test_an_environment_of_gymnasium_is_a_run_like_any_other(tiny, pretend):
    name = "gymnasium:CartPole-v1"
    assert call(tiny, "--env", name, "--seeds", "1") == 0
    assert pretend == [(name, 0)]
    assert suite._reference_of(name) == Reference(475.0, "Gymnasium's threshold")
    assert suite._reference_of("my_world:Line") is None
    assert (tiny.parent / "runs" / "gymnasium-CartPole-v1-0").is_dir()


def test_random_play_of_what_the_host_steps_is_that_of_the_compiled_loop():
    run = cli.parse(["--env", "gymnasium:CartPole-v1"]).config.run
    found = suite.random_policy(run)
    assert found["episodes"] == suite.ON_HOST
    assert abs(found["score"] - 22.5) < 3 * found["interval"]


def test_a_run_with_other_numbers_is_made_again_in_the_place_of_the_old_one(tiny, pretend):
    call(tiny, "--env", "Catch-bsuite", "--seeds", "2")
    tiny.write_text(tiny.read_text(encoding="utf-8").replace("320", "340"), encoding="utf-8")
    call(tiny, "--env", "Catch-bsuite", "--seeds", "1")
    assert pretend == [("Catch-bsuite", 0), ("Catch-bsuite", 1), ("Catch-bsuite", 0)]
    found = suite.read(tiny.parent / "results")["Catch-bsuite"]
    assert [seed["seed"] for seed in found["seeds"]] == [0, 1]


def test_a_run_whose_result_was_not_kept_is_not_made_again_and_one_of_other_numbers_is(
        tiny, tmp_path, monkeypatch):
    begun, numbers = [], runs.resolved(tiny, "Catch-bsuite", 0)
    monkeypatch.setattr(runs.subprocess, "Popen", partial(_begin, begun))
    folder = tmp_path / "Catch-bsuite-0"
    (folder / "run" / "checkpoints").mkdir(parents=True)
    record = folder / "run" / "checkpoints" / "1.json"
    record.write_text('{\n  "format": 2,\n}')
    (folder / "run" / "metrics.jsonl").write_text('{"step": 320, "charts/score_return": 1.0}\n')
    (folder / "run" / "config.yaml").write_text(config.dump(numbers))
    assert runs.train(runs.Run(numbers, folder)) == 0 and not begun
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert runs.train(runs.Run(numbers, folder)) == 0 and "--resume" in begun[0]
    record.write_text('{\n  "format": 1,\n}')  # of an older version: not to be resumed
    assert runs.train(runs.Run(numbers, folder)) == 0 and "--logdir" in begun[1]
    other = runs.resolved(tiny, "Catch-bsuite", 1)
    assert runs.train(runs.Run(other, folder)) == 0 and "--logdir" in begun[2]
    assert not (folder / "run").exists()


class _begin:
    """A stub for a process that ends immediately."""

    returncode = 0

    def __init__(self, begun, command, stdout, stderr, start_new_session):
        begun.append(command)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def poll(self):
        """It has ended."""
        return 0


def test_a_failed_run_is_reported_and_the_next_one_starts(tiny, pretend, monkeypatch, capsys):
    monkeypatch.setattr(runs, "train", lambda run: run.config.run.env == "Catch-bsuite")
    assert call(tiny, "--env", "Catch-bsuite", "--env", "DeepSea-bsuite", "--seeds", "1") == 1
    said = capsys.readouterr().out
    assert "Catch-bsuite, seed 0: ended with status True, see" in said
    assert list(suite.read(tiny.parent / "results")) == ["DeepSea-bsuite"]


@pytest.mark.slow
def test_a_run_is_stopped_resumed_saved_plotted_and_not_repeated(tiny, capsys, monkeypatch):
    flags = ["--env", "Catch-bsuite", "--seeds", "1"]
    command = [sys.executable, "-m", "utils.suite", "--config", tiny, *flags,
               "--results", tiny.parent / "results", "--runs", tiny.parent / "runs"]
    log = tiny.parent / "runs" / "Catch-bsuite-0" / "log.txt"
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        while "device" not in _text(log) and process.poll() is None:
            time.sleep(0.05)
        assert call(tiny, *flags) == 0
        assert "another process is working on it" in capsys.readouterr().out
        process.send_signal(signal.SIGINT)
        assert "to resume: the same command" in process.stdout.read()
    assert process.returncode == 130
    folder = tiny.parent / "runs" / "Catch-bsuite-0"

    assert call(tiny, *flags) == 0
    assert "resumes" in capsys.readouterr().out and "resuming" in _text(folder / "log.txt")
    found = suite.read(tiny.parent / "results")["Catch-bsuite"]
    (seed,) = found["seeds"]
    last = json.loads(_text(folder / "run" / "metrics.jsonl").splitlines()[-1])
    assert seed["score"] == found["score"] == last["charts/score_return"]
    assert seed["steps"] == last["step"] >= 320 and found["block"] == {"run": {"steps": 320}}
    assert seed["curve"] and seed["updates"] > 0 and seed["seconds"] > 0
    assert seed["versions"]["jax"] and seed["date"] and seed["machine"]["cpus"]
    assert -0.8 < found["random"]["score"] < -0.4
    Image.open(tiny.parent / "results" / "results.png").verify()

    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("made a second time"))
    assert call(tiny, *flags) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"already done 1 of 1 runs: with these settings, {tiny.parent}")
    assert f"results of {seed['date']}" in said and "--results DIR --runs DIR" in said


def _text(path):
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.parametrize("flags, words", [
    (["--env", "Catch"], ["'Catch'", "Catch-bsuite"]),
    (["--seeds", "0"], ["--seeds", "from 1 to 1000", "0"]),
    (["--seeds", "few"], ["--seeds", "'few'"]),
    (["--sedes", "2"], ["--sedes"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
])
def test_a_wrong_flag_gets_one_line_and_status_2(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert suite.main(flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and not os.listdir()
    for word in words:
        assert word in said.err


@pytest.mark.parametrize("text, words", [
    ("{", "is not JSON"), ("[]", "expected a mapping"),
    ('{"Catch-bsuite": 1}', "each with its seeds"), ('{"Catch-bsuite": {}}', "each with its seeds"),
])
def test_results_that_are_none_are_named_before_anything_runs(
        text, words, tmp_path, capsys, pretend):
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    flags = ["--results", str(tmp_path), "--runs", str(tmp_path / "runs"), "--env", "Catch-bsuite"]
    for more in (["--table"], []):
        assert suite.main([*flags, *more]) == 2
        said = capsys.readouterr().err
        assert "results.json: " in said and words in said and said.count("\n") == 1
    assert not pretend


def test_a_table_of_what_is_not_there_gets_one_line(tmp_path, capsys):
    assert suite.main(["--table", "--results", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.endswith(
        "results.json: no such file; run without --table to create it\n")


@pytest.mark.parametrize("score, interval, episodes, reference, word", [
    (1.0, 0.0, [0.0], 1.0, "yes"), (0.9996, 0.0, [0.0], 1.0, "yes"),
    (0.9, 0.2, [0.0], 1.0, "within ±"), (0.9, 0.05, [0.0], 1.0, "no"),
    (0.9, 0.0, [0.11], 1.0, "within ±"), (0.9, 0.01, [0.12, 0.17], 1.0, "within ±"),
    (0.9, 0.01, [0.12, 0.15], 1.0, "no"), (-131.0, 0.5, [0.0], -130.0, "no"),
    (-129.0, 0.0, [0.0], -130.0, "yes"), (5.0, 1.0, [0.0], None, "-"),
])
def test_a_score_reaches_its_reference_or_does_not(score, interval, episodes, reference, word):
    found = {"score": score, "interval": interval, "seeds": [{"interval": i} for i in episodes]}
    assert suite.reached(found, Reference(reference, "")) == word


@pytest.mark.parametrize("seeds, score", [(1, "1.000"), (2, "1.000 ± 0.500")])
def test_a_score_has_an_interval_where_there_are_several_seeds(seeds, score):
    seed = {"last": 1.0, "steps": 640, "updates": 10, "seconds": 60}
    found = {"random": {"score": 0.0}, "score": 1.0, "interval": 0.5, "seeds": [seed] * seeds}
    row = suite.table({"Own": found}).splitlines()[-1]
    assert row == f"| Own | 0.000 | - | {score} | - | 1.000 | {seeds} | 640 | 10 | 1.0 |"


def test_a_reference_is_shown_with_its_steps_if_they_are_known():
    seed = {"interval": 0.0, "last": 1.0, "steps": 640, "updates": 10, "seconds": 60}
    found = {"random": {"score": 0.0}, "score": 1.0, "interval": 0.0, "seeds": [seed]}
    rows = suite.table(dict.fromkeys(["Breakout-MinAtar", "Catch-bsuite"], found)).splitlines()
    assert "| 0.000 | 28.0 after 10M | 1.000 | no |" in rows[-2]
    assert "| 0.000 | 1.000 | 1.000 | yes |" in rows[-1]


def test_the_random_policy_has_the_known_return_of_a_simple_game():
    run = runs.resolved(ROOT / "dreamer.yaml", "SimpleBandit-bsuite", 0).run
    found = suite.random_policy(run)  # one arm of eleven, 0 to 1
    assert abs(found["score"] - 0.5) < 0.04 and 0.015 < found["interval"] < 0.025


def test_every_environment_of_gymnax_that_can_run_has_its_reference():
    assert set(REFERENCES) == gymnax_wrappers.BUILT_IN - {gymnax_wrappers.MNIST}


def blocks():
    """{environment: its block} in dreamer.yaml."""
    return {name: block for name, block in config.read(ROOT / "dreamer.yaml")["presets"].items()
            if name in REFERENCES}


def test_environments_differ_in_budget_and_size_and_some_in_eta_and_blocks_say_why():
    assert blocks()
    for name, block in blocks().items():
        for section, keys in block.items():
            assert section in OWN, name
            assert OWN[section] is None or set(keys) <= OWN[section], name
        less = name in LESS or not gymnax_wrappers.make(name).discrete
        eta = {"eta": ETA.get(name, 0.001)} if less else None
        assert block.get("learning") == eta, name
    text = (ROOT / "dreamer.yaml").read_text(encoding="utf-8")
    for name in blocks():
        assert re.search(rf"^  {re.escape(name)}:.*  # \S", text, re.MULTILINE), name


def test_in_the_proposed_numbers_environments_differ_in_their_budget_alone():
    shipped, proposed = (config.read(folder / "dreamer.yaml")["presets"]
                         for folder in (ROOT, PROPOSED))
    own = {name: block for name, block in proposed.items()
           if name in {*REFERENCES, "gymnasium", "LunarLander-v3"}}
    assert len(own) > 10
    for name, block in own.items():
        assert block.keys() == {"run"}, name
        assert block["run"].keys() <= OWN["run"] | {"eval_episodes"}, name
    others = {name: block for name, block in proposed.items() if name not in own}
    assert others.pop("no_recent") == {"replay": {"recent": 0}}
    assert others == {name: shipped.get(name) for name in others}
    assert {"paper", "debug", "no_agc"} <= others.keys()


def test_a_page_contains_the_table_of_the_proposed_numbers():
    assert suite.table(suite.read(PROPOSED)) == pages.block("proposed"), (
        "fill it by: python -m utils.suite --results docs/proposed --table")
    assert (PROPOSED / "results.png").exists()


def test_the_block_of_an_environment_comes_first_and_presets_and_flags_win():
    flags = ["--config", str(ROOT / "dreamer.yaml"), "--env", "Breakout-MinAtar"]
    block = blocks()["Breakout-MinAtar"]["run"]
    plain = cli.parse(flags).config.run
    assert {key: getattr(plain, key) for key in block} == block
    debug = cli.parse([*flags, "--preset", "debug"]).config.run
    assert debug.steps == 640 and debug.train_ratio == block["train_ratio"]
    assert cli.parse([*flags, "--steps", "5000"]).config.run.steps == 5000
    other = cli.parse([*flags[:2], "--env", "CartPole-v1"]).config.run
    assert other.steps == 20_000


def results():
    """The content of docs/results.json."""
    found = suite.read(RESULTS)
    if not found:
        pytest.skip("docs/results.json is not measured yet")
    return found


def test_a_page_contains_the_table_of_the_results():
    found = suite.table(results())
    assert found == pages.block("suite"), "fill it by: python -m utils.suite --table"
    assert (RESULTS / "results.png").exists()


@pytest.mark.parametrize("numbers, folder", [(ROOT, RESULTS), (PROPOSED, PROPOSED)])
def test_the_results_were_made_with_the_numbers_of_their_file(numbers, folder):
    for name, found in suite.read(folder).items():
        for seed in found["seeds"]:
            now = runs.resolved(numbers / "dreamer.yaml", name, seed["seed"])
            assert seed["mark"] == runs.fingerprint(now), (name, seed["seed"])
        scores = [seed["score"] for seed in found["seeds"]]
        assert found["score"] == pytest.approx(np.mean(scores))
