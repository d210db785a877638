"""The agent without one part at a time: runs, results, plots and messages."""

import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import dreamer
import gymnax_wrappers
from tests import pages
from utils import ablations
from utils.core import config
from utils.core.settings import Config
from utils.study import charts, runs

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "dreamer.yaml"
DOCS = ROOT / "docs"
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture
def tiny(tmp_path):
    """A small configuration file with two ablations and another preset."""
    settings = config.load(SHIPPED, Config, ["debug"])
    blocks = ("presets:\n  no_unimix: {model: {unimix: 0}}\n  mine: {learning: {eta: 0}}\n"
              "  no_free_bits: {learning: {free_bits: 0}}\n")
    path = tmp_path / "tiny.yaml"
    path.write_text(config.dump(settings) + blocks, encoding="utf-8")
    return path


def _no_time(begun, run):
    """A stub for a successful run."""
    begun.append((run.config.model.unimix, run.config.learning.free_bits, run.config.learning.eta,
                  run.config.run.env, run.config.run.seed))
    return 0


def _unimix_as_score(run, folder):
    """A stub for the result of such a run."""
    score = 100.0 * run.model.unimix + run.run.seed
    return {"seed": run.run.seed, "mark": runs.fingerprint(run), "score": score, "steps": 100,
            "seconds": 60, "curve": [[50, 0.0], [100, score]]}


@pytest.fixture
def pretend(monkeypatch):
    """Fake runs -> the runs started, in order"""
    begun = []
    monkeypatch.setattr(runs, "train", partial(_no_time, begun))
    monkeypatch.setattr(runs, "result", _unimix_as_score)
    return begun


def call(tiny, *flags):
    """The command in this process, with its folders next to the configuration."""
    return ablations.main(["--config", str(tiny), "--results", str(tiny.parent / "results"),
                           "--runs", str(tiny.parent / "runs"), *flags])


def test_the_full_agent_and_every_preset_that_begins_with_no_are_run_seed_by_seed(tiny, pretend):
    assert call(tiny, "--seeds", "2", "--env", "CartPole-v1", "--env", "Catch-bsuite") == 0
    assert pretend == [(*numbers, 0.01, env, seed) for seed in (0, 1)
                       for env in ("CartPole-v1", "Catch-bsuite")
                       for numbers in ((0.01, 0.1), (0.0, 0.1), (0.01, 0.0))]
    found = runs.read(tiny.parent / "results" / "ablations.json")
    assert list(found["Catch-bsuite"]) == ["full", "no_unimix", "no_free_bits"]
    Image.open(tiny.parent / "results" / "ablations.png").verify()
    assert found["CartPole-v1"]["full"]["score"] == 1.5
    assert [seed["seed"] for seed in found["CartPole-v1"]["no_unimix"]["seeds"]] == [0, 1]


def test_finished_runs_are_skipped_unless_their_settings_changed(tiny, pretend, capsys):
    flags = ["--seeds", "1", "--env", "CartPole-v1", "--preset", "no_unimix"]
    assert call(tiny, *flags) == call(tiny, *flags) == 0 and len(pretend) == 2
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said[0].startswith("already done 2 of 2 runs") and "ablations.json" in said[0]
    assert "to train anew" in said[1] and "--results" in said[1]
    tiny.write_text(tiny.read_text(encoding="utf-8").replace("{unimix: 0}", "{unimix: 0.5}"),
                    encoding="utf-8")
    assert call(tiny, *flags) == 0 and [numbers[0] for numbers in pretend] == [0.01, 0.0, 0.5]
    found = runs.read(tiny.parent / "results" / "ablations.json")["CartPole-v1"]
    assert [seed["score"] for seed in found["no_unimix"]["seeds"]] == [50.0]


def test_any_preset_can_be_an_ablation(tiny, pretend):
    assert call(tiny, "--seeds", "1", "--env", "CartPole-v1", "--preset", "mine") == 0
    assert [numbers[2] for numbers in pretend] == [0.01, 0.0]


def test_results_are_in_the_order_of_the_yaml(tiny, pretend):
    for name in ("no_free_bits", "no_unimix"):
        assert call(tiny, "--seeds", "1", "--env", "CartPole-v1", "--preset", name) == 0
    found = runs.read(tiny.parent / "results" / "ablations.json")["CartPole-v1"]
    assert list(found) == ["full", "no_unimix", "no_free_bits"]


def test_the_table_has_a_row_for_each_ablation_and_two_columns_for_each_environment(
        tiny, pretend, capsys):
    call(tiny, "--seeds", "2", "--env", "CartPole-v1")
    capsys.readouterr()
    assert call(tiny, "--table") == 0
    assert capsys.readouterr().out.splitlines() == [
        "|  | CartPole-v1, learning | CartPole-v1, score |", "| --- | ---: | ---: |",
        "| `full` | 0.8 ± 3.2 | 1.5 ± 6.4 |", "| `no_unimix` | 0.2 ± 3.2 | 0.5 ± 6.4 |",
        "| `no_free_bits` | 0.8 ± 3.2 | 1.5 ± 6.4 |"]


def test_a_single_seed_has_no_interval(tiny, pretend, capsys):
    call(tiny, "--seeds", "1", "--env", "CartPole-v1", "--preset", "no_unimix")
    capsys.readouterr()
    assert call(tiny, "--table") == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| `full` | 0.5 | 1.0 |", "| `no_unimix` | 0.0 | 0.0 |"]


@pytest.mark.parametrize("flags, words", [
    (["--env", "Cartpole"], ["'Cartpole'", "CartPole-v1"]),
    (["--preset", "no_unimx"], ["'no_unimx'", "'no_unimix'"]),
    (["--seeds", "0"], ["--seeds", "from 1 to 1000", "0"]),
    (["--sedes", "2"], ["--sedes"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
])
def test_a_wrong_flag_gets_one_line_and_status_2(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ablations.main(flags) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and not os.listdir()
    assert said.err.startswith("utils.ablations: ") and all(word in said.err for word in words)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"CartPole-v1": {"full": {}}}'])
def test_results_of_another_program_are_reported(text, tiny, capsys):
    (tiny.parent / "results").mkdir()
    (tiny.parent / "results" / "ablations.json").write_text(text, encoding="utf-8")
    assert call(tiny, "--table") == call(tiny) == 2
    assert capsys.readouterr().err.count("each with its seeds\n") == 2


def test_a_file_without_ablations_is_reported(tiny, capsys):
    text = tiny.read_text(encoding="utf-8")
    tiny.write_text(text[:text.index("presets:")], encoding="utf-8")
    assert call(tiny) == 2
    assert "no preset begins with no_" in capsys.readouterr().err


def test_each_ablation_changes_one_number_and_explains_the_effect():
    text, full = SHIPPED.read_text(encoding="utf-8"), config.load(SHIPPED, Config)
    for name in ablations.ablations(SHIPPED):
        changed = config.differences(config.load(SHIPPED, Config, [name]), config.dump(full))
        assert len(changed) == 1, name
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}:")]
        assert line.partition("  # ")[2], name


@pytest.mark.slow
@pytest.mark.parametrize("name", ablations.ablations(SHIPPED))
def test_without_one_of_its_parts_the_agent_still_learns_finite_weights(name):
    sizes = ["replay.batch=2", "replay.length=4", "optimizer.warmup=0", "run.train_ratio=8"]
    settings = config.load(SHIPPED, Config, ["debug", name], sizes)
    program, _ = dreamer.build(settings, gymnax_wrappers.make("CartPole-v1"))
    key = jax.random.key(0)
    loop = dreamer.init(program, key)
    loop, _ = dreamer.prefill.lower(program, loop, 20).compile(QUICK)(loop)
    loop, _, metrics = dreamer.train_chunk.lower(program, loop, 20).compile(QUICK)(loop)
    leaves = jax.tree.leaves((loop.agent.params, metrics))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)


def results():
    """The content of docs/ablations.json."""
    found = runs.read(DOCS / ablations.RESULTS)
    if not found:
        pytest.skip("docs/ablations.json is not measured yet")
    return found


def test_a_page_contains_the_table_of_the_ablations():
    assert ablations.table(results()) == pages.block("ablations"), (
        "fill it by: python -m utils.ablations --table")
    assert (DOCS / ablations.PICTURE).exists()


def test_the_ablations_were_run_with_the_shipped_settings():
    for env, found in results().items():
        for name, one in found.items():
            presets = [] if name == ablations.FULL else [name]
            for seed in one["seeds"]:
                now = runs.resolved(SHIPPED, env, seed["seed"], presets)
                assert seed["mark"] == runs.fingerprint(now), (env, name, seed["seed"])


def test_an_ablation_without_a_full_agent_is_plotted_too(tmp_path):
    curve = {"seeds": [{"seed": 0, "curve": [[0, 1.0], [10, 2.0]]}]}
    charts.ablations(tmp_path / "x.png", {"CartPole-v1": {"no_unimix": curve}})
    Image.open(tmp_path / "x.png").verify()
