"""Environments of Gymnasium, which the host steps: their rows, what is refused, and whole runs."""

import json
import re
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gymnasium
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import dreamer
import gymnax_wrappers
from tests import pages, sharing
from tests.test_user_env import refused
from utils import evaluate, report, watch
from utils.agent import Agent
from utils.core import cli
from utils.core.replay import Replay
from utils.pictures.page import CAPTIONS
from utils.run.checkpoint import Checkpoints
from utils.run.logger import read_rows
from utils.worlds import host_loop
from utils.worlds.host import Worlds

ROOT = Path(__file__).parent.parent
CARTPOLE, DEBUG = "gymnasium:CartPole-v1", ["--preset", "debug"]

# A module of good and bad worlds.
WORLDS = '''
import gymnasium
import numpy as np
from gymnasium import spaces

class Line(gymnasium.Env):
    """x = t; r = 100 + t; ends at t = 3 where `ends`, else a time limit may cut it."""
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1.0, 3.0, (1,), np.float64)
    def __init__(self, ends=True, render_mode=None):
        self.ends, self.taken, self.render_mode = ends, [], render_mode
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}
    def step(self, action):
        assert self.action_space.contains(action), action
        self.t, self.taken = self.t + 1, [*self.taken, action]
        return self.seen(), 100.0 + self.t, self.ends and self.t == 3, False, {}
    def seen(self):
        return np.array([float(self.t)])

def cut():
    return gymnasium.wrappers.TimeLimit(Line(ends=False), 2)

def seeing(space, seen):
    """A class of worlds with this observation space, all of whose observations are `seen`."""
    body = {"observation_space": space, "seen": lambda self: seen}
    return type("Seeing", (Line,), body)

def acting(space):
    return type("Acting", (Line,), {"action_space": space})

Noise = type("Noise", (Line,), {"seen": lambda self: self.np_random.normal(size=1)})
Numbered = seeing(spaces.Discrete(5, start=2), 3)
Bits = seeing(spaces.MultiBinary(3), np.array([1, 0, 1], np.int8))
Many = seeing(spaces.MultiDiscrete([2, 3]), np.array([1, 2]))
Named = seeing(spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0.0, 9.0, (2,))}),
               {"a": 1, "b": np.array([5, 6], np.float32)})
Pair = seeing(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))), (0, 2))
Photo = seeing(spaces.Box(0, 255, (16, 12, 3), np.uint8), np.full((16, 12, 3), 7, np.uint8))
Grey = seeing(spaces.Box(0.0, 1.0, (16, 12)), np.full((16, 12), 0.5, np.float32))
Wide = seeing(spaces.Box(0, 255, (130, 16, 3), np.uint8), np.zeros((130, 16, 3), np.uint8))
Album = seeing(spaces.Dict({"x": spaces.Box(0, 255, (4, 4, 3), np.uint8)}),
               {"x": np.zeros((4, 4, 3), np.uint8)})
Bright = seeing(spaces.Box(0.0, 255.0, (8, 8)), np.full((8, 8), 255, np.float32))
Beyond = seeing(spaces.Discrete(5, start=2), 7)
Broken = seeing(spaces.Box(0.0, 1.0, (2,)), np.array([0, np.nan], np.float32))
Short = seeing(spaces.Box(0.0, 1.0, (2,)), np.zeros(1, np.float32))
Endless = seeing(spaces.Sequence(spaces.Discrete(2)), (0,))
Spaceless = seeing(None, 0)
Late = acting(spaces.Discrete(3, start=1))
Whole = acting(spaces.Box(-2, 5, (1,), np.int64))
Boundless = acting(spaces.Box(-np.inf, np.inf, (1,)))
Bitwise = acting(spaces.MultiBinary(2))
Hands = acting(spaces.MultiDiscrete([2, 2]))

class Unmade(Line):
    def __init__(self):
        raise RuntimeError("no licence")

class Unset(Line):
    def reset(self, *, seed=None, options=None):
        return self.forgotten

class Alone(Line):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]

class Four(Line):
    def step(self, action):
        return super().step(action)[:4]

class Priceless(Line):
    def step(self, action):
        x, _, *rest = super().step(action)
        return x, np.inf, *rest

class Falls(gymnasium.Wrapper):
    """Fails in its 370th step, of which 100 are tried before the run."""
    steps = 0
    def step(self, action):
        Falls.steps += 1
        if Falls.steps == 370:
            raise ValueError("the rope is torn")
        return super().step(action)

def falls():
    return Falls(gymnasium.make("CartPole-v1"))  # of which others have compiled the program

class Complete(gymnasium.Wrapper):
    """A wrapper that makes its world itself."""
    def __init__(self):
        super().__init__(Line())

def many():
    return gymnasium.make_vec("CartPole-v1", 2)

def stretched(length=1):
    return gymnasium.wrappers.TimeLimit(Line(ends=False), length)

gymnasium.register("Mine/Line-v0", Line, max_episode_steps=2, reward_threshold=7.0)
'''


class Rows(NamedTuple):
    """Two columns of a replay [E, C]."""

    is_first: np.ndarray
    is_last: np.ndarray


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with my_world.py of the page and worlds.py; imports are undone after."""
    (tmp_path / "worlds.py").write_text(WORLDS, encoding="utf-8")
    (tmp_path / "my_world.py").write_text(example(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("worlds", "my_world"):
        sys.modules.pop(name, None)
    gymnasium.registry.pop("Mine/Line-v0", None)


def example():
    """The world that docs/environments.md shows."""
    return re.search("```python\n(\"\"\"my_world.py.*?)```", pages.text(), re.DOTALL)[1]


def rows(name, actions, count=1, seeds=(0,)):
    """The first Steps of `count` worlds that carry out actions [T, A] of the agent: [T + 1, E]"""
    env = gymnax_wrappers.make(name)
    worlds = Worlds(env, count)
    played = [worlds.reset(seeds)]
    for a in actions:
        played.append(worlds.step(np.stack([np.asarray(env.action(a))] * count)))
    return jax.tree.map(lambda *steps: np.stack(steps), *played), worlds


# ------------------------------------------------------------------------------------------------
# Rows
# ------------------------------------------------------------------------------------------------


def test_a_world_that_ends_at_3_gives_the_rows_of_the_time_line(folder):
    played, _ = rows("worlds:Line", np.zeros((5, 1), np.float32))
    assert_array_equal(played.x[:, 0, 0], [0, 1, 2, 3, 0, 1])
    assert_array_equal(played.r[:, 0], [0, 101, 102, 103, 0, 101])
    assert_array_equal(played.is_first[:, 0], [1, 0, 0, 0, 1, 0])
    assert_array_equal(played.is_last[:, 0], [0, 0, 0, 1, 0, 0])
    assert_array_equal(played.is_terminal[:, 0], [0, 0, 0, 1, 0, 0])


def test_a_world_that_a_time_limit_cuts_at_2_gives_a_last_row_that_is_not_terminal(folder):
    played, _ = rows("worlds:cut", np.zeros((4, 1), np.float32))
    assert_array_equal(played.x[:, 0, 0], [0, 1, 2, 0, 1])
    assert_array_equal(played.is_first[:, 0], [1, 0, 0, 1, 0])
    assert_array_equal(played.is_last[:, 0], [0, 0, 1, 0, 0])
    assert not played.is_terminal.any()


def test_the_action_of_a_last_row_is_never_carried_out(folder):
    _, worlds = rows("worlds:Line", np.linspace(-1, 1, 5, dtype=np.float32)[:, None])
    taken = [action[0] for action in worlds._worlds[0].taken]
    assert_allclose(taken, [-1, 0, 1, 3])  # of -1, 0, 1, 2, 3


def test_rows_are_those_of_gymnasiums_own_vector_of_worlds():
    mode = gymnasium.vector.AutoresetMode.NEXT_STEP
    theirs = gymnasium.make_vec("CartPole-v1", 3, vector_kwargs={"autoreset_mode": mode},
                                vectorization_mode="sync")
    worlds = Worlds(gymnax_wrappers.make(CARTPOLE), 3)
    x, _ = theirs.reset(seed=[1, 2, 3])
    assert_array_equal(worlds.reset([1, 2, 3]).x, x)
    for action in np.random.default_rng(0).integers(0, 2, (100, 3)):
        x, r, ended, cut, _ = theirs.step(action)
        ours = worlds.step(action)
        for one, other in ((ours.x, x), (ours.r, r), (ours.is_terminal, ended),
                           (ours.is_last, ended | cut)):
            assert_array_equal(one, other)


def test_equal_seeds_give_equal_worlds_and_other_seeds_others(folder):
    one, same, other = (rows("worlds:Noise", np.zeros((9, 1), np.float32), 2, seeds)[0].x[..., 0]
                        for seeds in ((1, 2), (1, 2), (3, 4)))
    assert_array_equal(one, same)
    assert (one != other).all() and (one[:, 0] != one[:, 1]).all()


def test_worlds_that_do_not_play_stand_still(folder):
    worlds = Worlds(gymnax_wrappers.make("worlds:Line"), 2)
    worlds.reset([0, 0])
    played = worlds.step(np.zeros((2, 1)), playing=np.array([True, False]))
    assert_array_equal(played.x[:, 0], [1, 0])


# ------------------------------------------------------------------------------------------------
# Spaces
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, x", [
    ("worlds:Line", [0.0]),
    ("worlds:Complete", [0.0]),
    ("worlds:Numbered", [0, 1, 0, 0, 0]),  # 3 of 2 to 6
    ("worlds:Bits", [1, 0, 1]),
    ("worlds:Many", [0, 1, 0, 0, 1]),
    ("worlds:Named", [0, 1, 5, 6]),
    ("worlds:Pair", [1, 0, 0, 0, 1]),
])
def test_each_kind_of_observation_becomes_one_vector(folder, name, x):
    env = gymnax_wrappers.make(name)
    assert env.x_shape == (len(x),) and env.x_dtype == np.float32 and not env.is_image
    assert_array_equal(rows(name, [])[0].x[0, 0], x)


@pytest.mark.parametrize("name, shape, value", [("worlds:Photo", (16, 12, 3), 7),
                                                ("worlds:Grey", (16, 12, 1), 128)])
def test_pictures_stay_pictures_of_bytes(folder, name, shape, value):
    env = gymnax_wrappers.make(name)
    assert env.x_shape == shape and env.x_dtype == np.uint8 and env.is_image
    assert (rows(name, [])[0].x == value).all()


def test_a_large_picture_and_one_inside_a_dict_are_noted(folder):
    (line,) = gymnax_wrappers.make("worlds:Wide").notes(3000)
    assert "130x16" in line and "ResizeObservation" in line
    (line,) = gymnax_wrappers.make("worlds:Album").notes(3000)
    assert "picture inside the observation" in line


@pytest.mark.parametrize("name, a, carried_out", [
    ("worlds:Late", [0.0, 1.0, 0.0], 2),  # actions 1, 2 and 3
    ("worlds:Late", [1.0, 0.0, 0.0], 1),
    ("worlds:Line", [-1.0], [-1.0]),  # bounds -1 and 3
    ("worlds:Line", [0.0], [1.0]),
    ("worlds:Line", [7.0], [3.0]),
    ("worlds:Whole", [1.0], [5]),  # whole numbers from -2 to 5
    ("worlds:Whole", [-0.9], [-2]),
])
def test_an_action_arrives_in_the_numbers_of_the_world(folder, name, a, carried_out):
    _, worlds = rows(name, np.array([a], np.float32))
    (taken,) = worlds._worlds[0].taken
    assert_array_equal(taken, carried_out)
    assert taken.dtype == worlds._worlds[0].action_space.dtype


# ------------------------------------------------------------------------------------------------
# Names, parameters and refusals
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, words", [
    ("LunarLander-v3", ["did you mean gymnasium:LunarLander-v3?"]),
    ("LunarLander", ["did you mean gymnasium:LunarLander-v3?"]),
    ("gymnasium:CartPol-v1", ["no 'CartPol-v1'", "'gymnasium:CartPole-v1'"]),
    ("gymnasium:CartPole-v9", ["no 'CartPole-v9'", "'gymnasium:CartPole-v"]),
    ("gymnasium:", ["knows no ''"]),
    ("gymnasium:wrlds:Mine/Line-v0", ["no module wrlds", "'worlds'"]),
    ("worlds:many", ["VectorEnv", "neither Gymnax nor gymnasium.Env"]),
    ("worlds:Unmade", ["RuntimeError", "worlds.py, line", "no licence"]),
    ("worlds:Falls", ["is a wrapper", "'env'", "def make(): return Falls(gymnasium.make(ID))"]),
    ("worlds:Unset", ["step 0 of random play", "AttributeError", "worlds.py, line", "forgotten"]),
    ("worlds:Alone", ["reset returns", "expected 2: observation, info"]),
    ("worlds:Four", ["step returns 4 values", "expected 5"]),
    ("worlds:Priceless", ["the reward is inf"]),
    ("worlds:Broken", ["entry [1] of the observation is nan", "finite"]),
    ("worlds:Short", ["float32[1]", "float32[2]"]),
    ("worlds:Beyond", ["the observation is 7", "expected 2 to 6"]),
    ("worlds:Bright", ["entry [0][0] of the observation is 255", "0 to 1, or uint8"]),
    ("worlds:Endless", ["observations of type Sequence", "flatten_space"]),
    ("worlds:Spaceless", ["observation_space of type NoneType"]),
    ("worlds:Boundless", ["without bounds"]),
    ("worlds:Bitwise", ["actions of type MultiBinary", "Discrete or Box"]),
    ("worlds:Hands", ["actions of type MultiDiscrete", "Discrete or Box"]),
])
def test_an_unsupported_world_is_refused_in_one_line(folder, name, words):
    message = refused(name)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name, changes, words", [
    (CARTPOLE, {"suton_barto_reward": 1}, ["no 'suton_barto_reward'", "'sutton_barto_reward'"]),
    ("worlds:Line", {"end": False}, ["no 'end'", "'ends'"]),
    ("worlds:stretched", {"lenth": 3}, ["no 'lenth'", "'length'"]),
])
def test_a_parameter_that_the_world_does_not_take_is_refused(folder, name, changes, words):
    message = refused(name, changes)
    for word in words:
        assert word in message


def test_parameters_are_keyword_arguments(folder):
    assert gymnax_wrappers.make("worlds:stretched", changes={"length": 6}).time_limit == 6
    assert gymnax_wrappers.make(CARTPOLE, changes={"max_episode_steps": 50}).time_limit == 50
    played = Worlds(gymnax_wrappers.make(CARTPOLE, changes={"sutton_barto_reward": True}), 1)
    played.reset([0])
    assert played.step(np.zeros(1, int)).r == 0.0  # where 1 is the default


def test_an_id_that_a_module_registers_is_found_with_its_limit_and_threshold(folder):
    env = gymnax_wrappers.make("gymnasium:worlds:Mine/Line-v0")
    assert env.time_limit == 2 and env.solved == 7.0


def test_a_world_describes_itself():
    env = gymnax_wrappers.make(CARTPOLE)
    assert env.describe() == (
        f"{CARTPOLE}: vector of 4 in, 2 discrete actions out, at most 500 steps")
    assert env.solved == 475.0 and not env.notes(3000)


def test_what_gymnasium_warns_of_is_noted():
    (line,) = gymnax_wrappers.make("gymnasium:CartPole-v0").notes(3000)
    assert "out of date" in line and "\x1b" not in line


def test_an_extra_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    message = refused("gymnasium:LunarLander-v3")
    assert 'pip install "gymnasium[box2d]"' in message


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs ale_py: pip install ale-py" in refused("gymnasium:ALE/Pong-v5")


def test_only_a_name_of_gymnasiums_own_runs_no_code_that_a_run_names():
    assert not cli.runs_own_code(CARTPOLE) and not cli.runs_own_code("CartPole-v1")
    assert cli.runs_own_code("worlds:Line") and cli.runs_own_code("gymnasium:worlds:Mine/Line-v0")


def test_a_block_of_an_id_holds_for_gymnasium_too_after_that_of_all_its_environments():
    acrobot = cli.parse(["--env", "gymnasium:Acrobot-v1"]).config
    assert acrobot.run.steps == 60000 and acrobot.run.eval_every == 2400
    assert acrobot.run.eval_episodes == 10 and acrobot.learning.eta == 0.001
    assert cli.parse(["--env", "Acrobot-v1"]).config.run.eval_episodes == 100


# ------------------------------------------------------------------------------------------------
# Whole runs
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _one_program():
    with sharing.one_program(draws=False):
        yield


def train(*flags):
    """The command, with the small agent: -> exit status"""
    return dreamer.main([*DEBUG, *flags])


def logged(run):
    """The rows of a run's metrics and scores, without times."""
    return [{key: value for key, value in row.items() if not key.startswith("time/")}
            for name in ("metrics.jsonl", "scores.jsonl") for row in read_rows(Path(run) / name)]


# All runs in CartPole have the same numbers, and so one program; other worlds have one device.
NUMBERS = ["--steps", "400", "--set", "run.save_every=128", "--set", "run.devices=2"]
RUN = ["--env", CARTPOLE, *NUMBERS]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run in CartPole through Gymnasium, of 400 steps."""
    made = tmp_path_factory.mktemp("runs") / "run"
    assert train(*RUN, "--seed", "3", "--logdir", str(made)) == 0
    return made


def test_a_run_leaves_what_any_run_leaves_and_equal_seeds_leave_the_same(run, tmp_path, capsys):
    for name, seed in (("same", "3"), ("other", "4")):
        assert train(*RUN, "--seed", seed, "--logdir", str(tmp_path / name)) == 0
    assert "score" in capsys.readouterr().out
    names = {path.name for path in run.iterdir()}
    assert names >= {"learning_curve.png", "config.yaml", "metrics.jsonl", "scores.jsonl",
                     "weights.npz", "checkpoints"}
    assert logged(run) == logged(tmp_path / "same") != logged(tmp_path / "other")
    returns = read_rows(run / "scores.jsonl")
    assert returns and all(row["return"] == row["length"] for row in returns)  # 1 for each action


@pytest.mark.parametrize("figures", [("open-loop", "imagined"), pytest.param(
    tuple(CAPTIONS), marks=pytest.mark.slow)], ids=["two figures", "all figures"])
def test_a_run_is_scored_filmed_and_reported_without_naming_its_world(
        figures, run, tmp_path, capsys):
    made = shutil.copytree(run, tmp_path / "run")
    assert evaluate.main([str(made), "--episodes", "3"]) == 0
    draws = find_spec("pygame") is not None  # with which Gymnasium draws its poles
    assert watch.main([str(made), "--limit", "60"]) == (0 if draws else 2)
    assert report.write(made, figures) == 0
    said = capsys.readouterr()
    assert "over 3 episodes" in said.out and "continued from their middle" in said.err
    assert (made / "report" / "open-loop.png").is_file()
    assert (made / "episode-3.gif").is_file() == draws
    assert draws or 'pip install "gymnasium[classic-control]"' in said.err
    (row,) = [json.loads(line) for line in (made / "evaluations.jsonl").open()]
    assert row["least"] >= 8 and row["mean"] == row["length"]


def test_the_agent_acts_in_any_loop(run):
    agent, world = Agent(run), gymnasium.make("CartPole-v1")
    x, _ = world.reset(seed=0)
    memory, total, over = agent.start(), 0.0, False
    while not over:
        action, memory = agent.act(x, memory)
        assert world.action_space.contains(action)
        x, r, ended, cut, _ = world.step(action)
        total, over = total + r, ended or cut
    assert total >= 8
    actions, _ = agent.act(np.zeros((5, 4), np.float32), agent.start(batch=5))
    assert actions.shape == (5,)


def test_two_resumes_of_one_checkpoint_are_equal_and_say_that_episodes_begin_anew(
        run, tmp_path, capsys):
    for name in ("a", "b"):
        checkpoints = Checkpoints(shutil.copytree(run, tmp_path / name))
        last = checkpoints.last_step()
        (checkpoints.folder / f"{last:010}.json").unlink()  # as if the run had been killed before
        assert checkpoints.last_step() < last
        assert dreamer.main(["--resume", str(tmp_path / name)]) == 0
        assert "episodes     begin anew" in capsys.readouterr().out
    assert logged(tmp_path / "a") == logged(tmp_path / "b") != logged(run)
    steps = [row["step"] for row in read_rows(tmp_path / "a" / "metrics.jsonl")]
    assert steps == sorted(steps) and steps[-1] == last


def test_the_row_before_new_episodes_is_the_last_of_its_episode():
    first = np.array([[1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0]], bool)
    last = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]], bool)
    for written, expected in (
            (5, [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 1, 0]]),  # a ring that is not full
            (9, [[0, 0, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1]])):  # one whose newest row is the third
        replay = Replay(Rows(first, last), np.int32(written))
        assert_array_equal(host_loop._closed(replay).rows.is_last, expected)


def test_several_seeds_in_one_program_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train("--env", CARTPOLE, "--seeds", "2") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "--seeds" in said.err and "--seed" in said.err
    assert not [*tmp_path.iterdir()]


def test_an_error_in_a_world_ends_the_run_with_its_step_and_place_and_how_to_go_on(folder, capsys):
    assert train(*NUMBERS, "--env", "worlds:falls", "--logdir", "run") == 1
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"worlds:falls: step \d+ of the run: ValueError in .*worlds.py, line \d+: "
                     "the rope is torn", error)
    saved = int(re.search(r"step (\d+); to resume: .* --resume run --env worlds:falls$", hint)[1])
    assert read_rows(folder / "run" / "metrics.jsonl")[-1]["step"] == saved >= 200


def test_the_world_of_the_page_has_at_most_30_lines_and_its_run_is_opened_only_with_its_name(
        folder, capsys):
    assert len([line for line in example().splitlines() if line]) <= 30
    assert train("--env", "my_world:Line", "--env-param", "stride=0.2", "--steps", "300",
                 "--logdir", "run") == 0
    assert "stride: 0.2" in (folder / "run" / "config.yaml").read_text(encoding="utf-8")
    assert evaluate.main(["run"]) == 2
    assert "--env my_world:Line" in capsys.readouterr().err
    assert evaluate.main(["run", "--env", "my_world:Line", "--episodes", "2"]) == 0
    assert watch.main(["run", "--env", "my_world:Line"]) == 0  # it draws no picture of itself


def test_a_signal_saves_the_run_and_says_how_to_resume_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with sharing.stopped_after(1, signal.SIGTERM):
        assert train(*RUN, "--logdir", "run") == 128 + signal.SIGTERM
    assert "--resume run" in capsys.readouterr().out
    assert Checkpoints("run").last_step() == read_rows(Path("run/metrics.jsonl"))[-1]["step"] < 400


lunar = pytest.mark.skipif(find_spec("Box2D") is None, reason="Box2D is not installed")


@lunar
def test_lunar_lander_is_made_with_its_parameters_and_played():
    env = gymnax_wrappers.make("gymnasium:LunarLander-v3", changes={"enable_wind": True})
    assert env.describe() == ("gymnasium:LunarLander-v3: vector of 8 in, 4 discrete actions out, "
                              "at most 1,000 steps")
    played, _ = rows("gymnasium:LunarLander-v3", np.eye(4, dtype=np.float32))
    assert played.x.shape == (5, 1, 8) and np.isfinite(played.x).all()


@lunar
@pytest.mark.slow
def test_lunar_lander_is_trained_and_filmed(tmp_path):
    name, made = "gymnasium:LunarLander-v3", tmp_path / "run"
    assert train("--env", name, "--env-param", "enable_wind=true", "--steps", "600", "--logdir",
                 str(made)) == 0
    assert watch.main([str(made), "--limit", "50"]) == 0


@pytest.mark.skipif(jax.device_count() < 2, reason="there is one device")
def test_two_devices_share_the_updates_and_the_replay(tmp_path, capsys):
    assert train(*RUN, "--logdir", str(tmp_path / "run")) == 0
    assert "device       2 x" in capsys.readouterr().out
