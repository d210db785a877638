"""What a run is good for afterwards: acting from five lines, scores, films."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dreamer
import gymnax_wrappers
from tests import pages
from utils import evaluate, report, watch
from utils.agent import Agent
from utils.core import config
from utils.core.settings import Config
from utils.run import arrays, weights

ROOT = Path(__file__).parent.parent


def _run_of(folder, env):
    """A run folder with random weights: those of `dreamer.init` would first be compiled."""
    folder.mkdir(parents=True)
    settings = config.load(ROOT / "dreamer.yaml", Config, ["debug"], [f"run.env={env}"])
    _, shapes = dreamer.build(settings, gymnax_wrappers.make(env))
    (folder / "config.yaml").write_text(config.dump(settings), encoding="utf-8")
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.array(random.normal(0.0, 0.1, leaf.shape), leaf.dtype),
                          shapes)
    arrays.save(folder / "weights.npz", arrays.flatten(params))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of CartPole."""
    return _run_of(tmp_path_factory.mktemp("runs") / "cart", "CartPole-v1")


def _example():
    """The program that README.md shows."""
    return re.search(r"```python\n(import gymnax.*?)```", pages.text(), re.DOTALL)[1]


def test_the_example_of_the_readme_plays_an_episode_from_another_folder(run, tmp_path):
    program = _example().replace("runs/CartPole-v1-0-20261121-165018", str(run))
    assert str(run) in program
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert 8 <= float(done.stdout) <= 500


def test_acting_alone_is_acting_in_a_batch_and_what_training_does(run):
    agent, key = Agent(run), jax.random.key(3)
    networks = dreamer.nnx.merge(agent.program.networks, agent.params)
    alone, memory = [], agent.start(seed=3)
    latent, a = memory.latent, memory.a
    for t, x in enumerate(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)):
        action, memory = agent.act(x, memory)
        alone.append(int(action))
        key, act_key = jax.random.split(key)
        no = jnp.zeros(1, bool)
        now = gymnax_wrappers.Step(jnp.asarray(x)[None], jnp.zeros(1), no | (t == 0), no, no)
        latent, a = dreamer.act(networks, now, latent, a, act_key)
        assert int(action) == int(jnp.argmax(a)), t
        np.testing.assert_allclose(memory.latent.h, latent.h, atol=1e-6)
    batched, memory = agent.act(np.zeros((5, 4), np.float32), agent.start(batch=5))
    assert batched.shape == (5,) and memory.latent.h.shape[0] == 5
    assert set(alone) == {0, 1}


@pytest.mark.parametrize("shape, batch", [((3,), None), ((5, 4), 4), ((5, 4), None), ((4,), 2)])
def test_an_observation_that_does_not_fit_the_memory_gets_one_line(shape, batch, run):
    agent = Agent(run)
    with pytest.raises(ValueError, match=r"the observation has shape \[.*expected \[4\] for each"):
        agent.act(np.zeros(shape), agent.start(batch))


def test_a_continuous_action_lies_in_the_bounds_of_the_environment(tmp_path):
    agent = Agent(_run_of(tmp_path / "run", "Pendulum-v1"))
    actions, _ = agent.act(np.zeros((40, 3), np.float32), agent.start(batch=40))
    assert actions.shape == (40, 1) and 1.0 < np.abs(actions).max() <= 2.0


def test_a_score_is_printed_and_appended_and_the_same_for_the_same_seed(run, capsys):
    for flags in (["--episodes", 20], ["--episodes", 20], ["--episodes", 5, "--seed", 9]):
        assert evaluate.main([str(flag) for flag in [run, *flags]]) == 0
    rows = [json.loads(line) for line in (run / evaluate.EVALUATIONS).read_text().splitlines()]
    assert rows[0] == rows[1] and (rows[2]["episodes"], rows[2]["seed"]) == (5, 9)
    first, said = rows[0], capsys.readouterr().out
    assert first["least"] <= first["mean"] <= first["most"] and first["mean"] == first["length"]
    assert first["interval"] == pytest.approx(1.96 * first["deviation"] / 20**0.5, rel=1e-4)
    assert f"{first['mean']:.2f} ± {first['interval']:.2f} (95%) over 20 episodes" in said


def test_a_film_shows_an_episode_and_its_return_is_what_the_agent_got(run, capsys):
    assert watch.main([str(run), "--seed", "2"]) == 0
    path, total, length = re.search(r"film +(\S+) \(return ([\d.]+), (\d+) actions\)",
                                    capsys.readouterr().out).groups()
    assert Path(path) == run / "episode-2.gif" and float(total) == int(length)
    with Image.open(path) as film:
        assert film.format == "GIF" and film.n_frames == int(length) + 1


@pytest.mark.parametrize("env", ["Breakout-MinAtar", *(
    pytest.param(env, marks=pytest.mark.slow) for env in ("Pendulum-v1", "FrozenLake-misc"))])
def test_other_worlds_are_filmed_too(env, tmp_path, capsys):
    run = _run_of(tmp_path / "run", env)
    assert watch.main([str(run)]) == 0
    with Image.open(run / "episode-0.gif") as film:
        assert film.n_frames > 1


@pytest.mark.parametrize("tool", [evaluate, watch])
def test_a_run_without_weights_or_with_others_gets_one_line(tool, run, tmp_path, capsys):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert tool.main([str(bare)]) == 2
    assert "weights.npz: does not exist yet" in capsys.readouterr().err
    kept = arrays.load(run / "weights.npz")
    arrays.save(bare / "weights.npz", kept | {"actor/out/bias": np.zeros(3, np.float32)})
    assert tool.main([str(bare)]) == 2
    said = capsys.readouterr().err
    assert "the array 'actor/out/bias' is float32[3], expected float32[2]" in said
    assert said.count("\n") == 1


STRANGER = ("from pathlib import Path\n"
            "Path('ran').touch()\n"
            "from tests.fleet import Walk as Make\n")


@pytest.fixture
def strange(run, tmp_path, monkeypatch):
    """A run whose config.yaml names code in the current folder, and that code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(STRANGER)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    _rename_env(folder, "evil:Make")
    yield folder
    sys.modules.pop("evil", None)


def _rename_env(folder, name):
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("CartPole-v1", f"'{name}'"), "utf-8")


@pytest.mark.parametrize("name", ["evil:Make", "sys:exit", "os:abort", "signal:pause"])
@pytest.mark.parametrize("tool", [evaluate.main, watch.main, report.main, dreamer.main])
def test_opening_a_run_runs_no_code_that_only_its_files_name(tool, name, strange, capsys):
    (strange / "config.yaml").write_text(
        (strange / "config.yaml").read_text().replace("evil:Make", name))
    assert tool(["--resume"] * (tool is dreamer.main) + [str(strange)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith(f"add --env {name}\n")
    assert not (strange.parent / "ran").exists() and {path.name for path in strange.iterdir()} <= {
        "config.yaml", "weights.npz", "evaluations.jsonl", "episode-2.gif"}
    with pytest.raises(ValueError, match="runs the code of"):
        Agent(strange)


def test_a_run_in_an_environment_of_its_own_is_opened_by_its_name(strange, capsys):
    with pytest.raises(ValueError, match=r"the array|missing|belongs"):  # weights of CartPole
        Agent(strange, env="evil:Make")
    assert (strange.parent / "ran").exists()
    assert evaluate.main([str(strange), "--env", "other:Make"]) == 2
    assert "is a run in evil:Make, found --env other:Make" in capsys.readouterr().err


def test_weights_of_another_run_are_refused_even_if_their_shapes_fit(run, tmp_path, capsys):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, seed in ((one, 3), (other, 4)):
        folder.mkdir()
        settings = config.load(run / "config.yaml", Config, sets=[f"run.seed={seed}"])
        (folder / "config.yaml").write_text(config.dump(settings), encoding="utf-8")
        weights.save(folder, Agent(run).params, settings)
    longer = config.load(one / "config.yaml", Config, sets=["run.steps=999999"])
    (one / "config.yaml").write_text(config.dump(longer), encoding="utf-8")
    assert Agent(one).config.run.steps == 999999  # as after --resume with more steps
    shutil.copy(one / "weights.npz", other)
    assert evaluate.main([str(other)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "belongs to another run" in said


def test_an_evaluation_is_written_before_it_is_printed(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = (tmp_path / "run" / evaluate.EVALUATIONS).read_text().count("\n")
    with mock.patch("builtins.print", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(OSError, match="space"):
            evaluate.score(Agent(tmp_path / "run", ["run.eval_episodes=2"]), tmp_path / "run")
    assert (tmp_path / "run" / evaluate.EVALUATIONS).read_text().count("\n") == before + 1


@pytest.mark.parametrize("tool, work", [(evaluate, "score"), (watch, "watch")])
def test_an_error_of_a_compiled_program_gets_one_line(tool, work, run, monkeypatch, capsys):
    text = "INTERNAL: CpuCallback error\n  File \"mine.py\", line 3, in look\nValueError: no camera"
    monkeypatch.setattr(tool, work, mock.Mock(side_effect=jax.errors.JaxRuntimeError(text)))
    assert tool.main([str(run)]) == 2
    assert capsys.readouterr().err.endswith(": ValueError in mine.py, line 3: no camera\n")


@pytest.mark.parametrize("tool, flags, said", [
    (evaluate, ["RUN", "--logdir", "x"], "unrecognized arguments: --logdir x"),
    (evaluate, ["RUN", "--episodes", "0"],
     "run.eval_episodes: expected a whole number at least 1"),
    (watch, ["RUN", "--limit", "0"], "run.eval_limit: expected a whole number at least 1"),
    (watch, ["RUN", "--seed", "one"], "run.seed: expected a whole number"),
    (watch, [], "required: RUN"),
    (evaluate, ["nowhere"], "nowhere: no such folder"),
    (evaluate, [str(ROOT)], "contains no run (no config.yaml)"),
])
def test_a_mistake_in_the_flags_gets_one_line(tool, flags, said, run, capsys):
    assert tool.main([str(run) if flag == "RUN" else flag for flag in flags]) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1


@pytest.mark.parametrize("flags, command", [
    (["--eval", "RUN"], "python -m utils.evaluate RUN"),
    (["--watch=RUN"], "python -m utils.watch RUN"),
    (["--explain", "--env", "Pendulum-v1"], "python -m utils.explain"),
])
def test_a_flag_that_became_a_command_names_the_command(flags, command, capsys):
    assert dreamer.main(flags) == 2
    said = capsys.readouterr().err
    flag = flags[0].partition("=")[0]
    assert said == f"dreamer.py: {flag}: is a separate command now: {command}\n"
