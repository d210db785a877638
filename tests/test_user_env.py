"""The user's own environments: found by name, checked before training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dreamer
import gymnax_wrappers
from tests import pages
from tests.test_commands import _run_of
from utils import watch
from utils.agent import Agent
from utils.core import user_env

ROOT = Path(__file__).parent.parent

# A module of good and bad environments, all made from the page's.
WORLDS = '''
import dataclasses
import gymnax
import gymnax.wrappers.purerl
from my_env import Line, Params, State, jax, jnp, spaces, struct

class Lacking:
    def reset(self, key, params): ...

class Shy(Line):
    def step_env(self, key, state, action): ...

class Slip(Line):
    def step_env(self, key, state, action, params):
        return self.forgotten(state)

class Four(Line):
    def step_env(self, key, state, action, params):
        return super().step_env(key, state, action, params)[:4]

class Alone(Line):
    def reset_env(self, key, params):
        return super().reset_env(key, params)[0]

class Growing(Line):
    def reset_env(self, key, params):
        x, state = super().reset_env(key, params)
        return x[:1], state

class Forgetful(Line):
    def step_env(self, key, state, action, params):
        x, state, *rest = super().step_env(key, state, action, params)
        return x, state.replace(time=state.time * 1.0), *rest

class Restless(Line):
    def step_env(self, key, state, action, params):
        x, state, *rest = super().step_env(key, state, action, params)
        return x, state.replace(mark=(state.mark,)), *rest

class Broken(Line):
    def step_env(self, key, state, action, params):
        x, *rest = super().step_env(key, state, action, params)
        return x.at[1].set(jnp.log(x[1])), *rest

class Priceless(Line):
    def step_env(self, key, state, action, params):
        x, state, r, *rest = super().step_env(key, state, action, params)
        return x, state, r / 0, *rest

class Crowd(Line):
    def step_env(self, key, state, action, params):
        x, state, r, *rest = super().step_env(key, state, action, params)
        return x, state, jnp.stack([r, r]), *rest

class Named(Line):
    def reset_env(self, key, params):
        x, state = super().reset_env(key, params)
        return {"x": x}, state

class TwoHands(Line):
    def action_space(self, params):
        return spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))

class Boundless(Line):
    def action_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (1,))

class Resetting:
    """Only `step`, which auto-resets like Gymnax's."""
    default_params = Params(max_steps_in_episode=4)
    action_space, observation_space = Line.action_space, Line.observation_space
    def __init__(self):
        self.whole = Line()
    def reset(self, key, params):
        return self.whole.reset(key, params)
    def step(self, key, state, action, params):
        return self.whole.step(key, state, action, params)

class Open:
    """Only `step`, without reset; the factory also returns parameters."""
    def reset(self, key, params):
        return jnp.zeros(2), jnp.zeros((), jnp.int32)
    def step(self, key, state, action, params):
        t = state + 1
        return jnp.full(2, t * 1.0), t, params["pay"], t == 3, t == 3, {}
    def action_space(self, params):
        return spaces.Box(-1, 1, (2,))
    def observation_space(self, params):
        return spaces.Box(0, 3, (2,))

def opened():
    return Open(), {"pay": 2.0}

class Generous(gymnax.wrappers.purerl.GymnaxWrapper):
    """A wrapper that overrides only `step`."""
    def step(self, key, state, action, params):
        x, state, r, *rest = self._env.step(key, state, action, params)
        return x, state, r - 100.0, *rest

def wrapped():
    return Generous(Line()), Params()

@dataclasses.dataclass
class Plain:
    time: int = 0

class Stateless(Line):
    def reset_env(self, key, params):
        return jnp.zeros(2), Plain()

class Unfinished(Line):
    @property
    def default_params(self):
        return self.forgotten

class Unpaid(Line):
    def step_env(self, key, state, action, params):
        x, state, _, *rest = super().step_env(key, state, action, params)
        return x, state, {"pay": 1}, *rest

class Bright(Line):
    def reset_env(self, key, params):
        return 255.0 * jnp.ones((8, 8)), super().reset_env(key, params)[1]
    def step_env(self, key, state, action, params):
        return 255.0 * jnp.ones((8, 8)), *super().step_env(key, state, action, params)[1:]

class Blind(Line):
    def step_env(self, key, state, action, params):
        jax.debug.callback(look, action)
        return super().step_env(key, state, action, params)

def look(action):
    raise ValueError("no camera")

@struct.dataclass
class Rich(Params):
    name: str = "x"
    goal: object = None

class Varied(Line):
    default_params = Rich()

def failing():
    raise RuntimeError("no licence\\n\\nfor this world")

number, nothing = 5, lambda: None
gymnax.register(ID, Line)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with my_env.py of the page and worlds.py; imports are undone after."""
    (tmp_path / "my_env.py").write_text(example(), encoding="utf-8")
    text = WORLDS.replace("ID", f'"Mine-{tmp_path.name}"')
    (tmp_path / "worlds.py").write_text(text, encoding="utf-8")
    (tmp_path / "slip.py").write_text("import os\n\ndef broken(:\n", encoding="utf-8")
    (tmp_path / "needy.py").write_text("import package_that_is_not_there\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_env", "worlds", "slip", "needy"):
        sys.modules.pop(name, None)


def example():
    """The environment that docs/environments.md shows."""
    return re.search("```python\n(\"\"\"my_env.py.*?)```", pages.text(), re.DOTALL)[1]


def refused(name, changes=None):
    """The one line that refuses an environment."""
    with pytest.raises(user_env.GuestError) as caught:
        gymnax_wrappers.make(name, changes=changes)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("run.env")
    return message


def test_the_example_environment_has_about_thirty_lines():
    assert 20 <= len([line for line in example().splitlines() if line]) <= 32


def test_a_factory_is_found_in_the_current_folder_and_describes_itself(folder):
    env = gymnax_wrappers.make("my_env:Line")
    assert env.describe() == "my_env:Line: vector of 2 in, 3 discrete actions out, at most 50 steps"


def test_an_environment_that_a_module_registers_with_gymnax_is_found_by_its_id(folder):
    env = gymnax_wrappers.make(f"worlds:Mine-{folder.name}")
    assert type(env.env).__name__ == "Line"


@pytest.mark.parametrize("name, words", [
    ("worlds:Lin", ["no 'Lin'", "'Line'"]),
    ("wrlds:Line", ["no module wrlds", "'worlds'"]),
    ("worlds.inner:Line", ["no module worlds.inner"]),
    ("worlds:", ["package.module:factory"]),
    ("a b:c", ["package.module:factory"]),
    ("slip:x", ["SyntaxError", "slip.py, line 3"]),
    ("needy:x", ["ModuleNotFoundError", "needy.py, line 1", "package_that_is_not_there"]),
    ("worlds:number", ["int", "class or function"]),
    ("worlds:nothing", ["NoneType", "reset, step", "action_space"]),
    ("worlds:failing", ["RuntimeError", "worlds.py, line", "no licence"]),
    ("worlds:Lacking", ["without step, action_space, observation_space"]),
    ("worlds:Shy", ["step_env(key, state, action)", "step_env(key, state, action, params)"]),
    ("worlds:Slip", ["AttributeError", "worlds.py, line 15", "forgotten"]),
    ("worlds:Four", ["step returns 4 values", "expected 5 or 6"]),
    ("worlds:Alone", ["reset returns", "expected 2: observation, state"]),
    ("worlds:Growing", ["its observation as float32[1] at reset", "float32[2] after a step"]),
    ("worlds:Forgetful", ["its state.time", "float32[] after a step"]),
    ("worlds:Restless", ["structure of its state"]),
    ("worlds:Broken", ["entry [1] of the observation is nan", "after 1 steps"]),
    ("worlds:Priceless", ["the reward is -inf", "after 1 steps"]),
    ("worlds:Crowd", ["reward", "shape [2]", "one number"]),
    ("worlds:Named", ["observations of type dict", "one array"]),
    ("worlds:TwoHands", ["actions of type Tuple", "Discrete or Box"]),
    ("worlds:Boundless", ["without bounds"]),
    ("worlds:Stateless", ["TypeError", "Plain"]),
    ("worlds:Unfinished", ["AttributeError", "worlds.py, line", "forgotten"]),
    ("worlds:Unpaid", ["worlds:Unpaid", "TypeError"]),
    ("worlds:Bright", ["entry [0][0] of the image is 255", "0 to 1, or uint8"]),
    ("worlds:Blind", ["worlds:Blind: ValueError in ", "worlds.py, line", ": no camera"]),
])
def test_an_unsupported_environment_is_refused_in_one_line(folder, name, words):
    message = refused(name)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name, changes, words", [
    ("my_env:Line", {"strid": 1}, ["no 'strid'", "'stride'"]),
    ("my_env:Line", {"stride": "far"}, ["run.env_params.stride", "a number", "'far'"]),
    ("my_env:Line", {"stride": True}, ["run.env_params.stride", "a number", "True"]),
    ("my_env:Line", {"stride": [1, 2]}, ["run.env_params.stride", "a number", "[1, 2]"]),
    ("my_env:Line", {"max_steps_in_episode": 2.5}, ["a whole number", "2.5"]),
    ("DiscountingChain-bsuite", {"reward_timestep": [1, 2]}, ["a whole number", "([5] of them)"]),
    ("worlds:Varied", {"name": 3}, ["run.env_params.name", "str", "cannot be changed"]),
    ("worlds:Varied", {"goal": 3}, ["run.env_params.goal", "NoneType", "cannot be changed"]),
    ("CartPole-v1", {"gravity": float("nan")}, ["CartPole-v1", "is nan", "after 1 steps"]),
    ("CartPole-v1", {"max_steps_in_episode": 5_000_000_000}, ["up to 2147483647", "5000000000"]),
    ("CartPole-v1", {"max_steps_in_episode": 10**30}, ["up to 2147483647", "1000000"]),
    ("worlds:opened", {"pay": 1}, ["no parameters that could be changed"]),
])
def test_a_parameter_of_another_name_or_kind_is_refused(folder, name, changes, words):
    message = refused(name, changes)
    for word in words:
        assert word in message


def test_parameters_reach_the_environment(folder):
    env = gymnax_wrappers.make("my_env:Line", changes={"stride": 1, "max_steps_in_episode": 7.0})
    assert env.params.stride == 1.0 and isinstance(env.params.stride, float)
    assert env.params.max_steps_in_episode == 7 and "at most 7 steps" in env.describe()
    assert gymnax_wrappers.make("my_env:Line", changes={"stride": "1e-3"}).params.stride == 1e-3
    chain = gymnax_wrappers.make("DiscountingChain-bsuite",
                                 changes={"reward_timestep": [5, 4, 3, 2, 1]})
    assert chain.params.reward_timestep.tolist() == [5, 4, 3, 2, 1]


def rows(name, steps):
    """x, r and the flags of the first rows of an environment."""
    env = gymnax_wrappers.make(name)
    state, now = env.reset(jax.random.key(0))
    found = [now]
    for key in jax.random.split(jax.random.key(1), steps):
        state, now = env.step(key, state, jnp.zeros(env.action_size))
        found.append(now)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def test_a_step_that_auto_resets_still_gives_the_last_observation(folder):
    played = rows("worlds:Resetting", 6)
    assert played.is_last.tolist() == [False] * 4 + [True, False, False]
    assert played.is_first.tolist() == [True] + [False] * 4 + [True, False]
    assert not played.is_terminal.any()
    marks = played.x[:, 1]  # drawn once an episode
    assert len(set(marks[:5].tolist())) == 1 and marks[5] == marks[6] != marks[4]


def test_a_step_without_auto_reset_is_reset_and_both_flags_may_be_true(folder):
    played = rows("worlds:opened", 5)
    assert played.x[:, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert played.r.tolist() == [0, 2, 2, 2, 0, 2]
    assert played.is_last.tolist() == played.is_terminal.tolist() == [False] * 3 + [True] + [
        False] * 2


def test_a_wrapper_is_not_bypassed(folder):
    played = rows("worlds:wrapped", 3)
    assert (played.r[1:] < -99).all()


def test_an_environment_can_be_stepped_outside_of_compiled_code():
    env = gymnax_wrappers.make("CartPole-v1")
    state, _ = env.reset(jax.random.key(0))
    _, now = env.step(jax.random.key(1), state, jnp.array([0.0, 1.0]))
    assert now.r == 1.0


def test_the_command_refuses_with_status_2_and_one_line(folder, capsys):
    before = sorted(os.listdir())
    for flags in (["--env", "worlds:Slip"], ["--env", "my_env:Line", "--env-param", "stride"],
                  ["--env", "my_env:Line", "--env-param", "strid=2"]):
        assert dreamer.main(flags) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
    assert [name for name in sorted(os.listdir()) if name != "__pycache__"] == before


def run(folder, *flags):
    """The command, in a process of its own."""
    return subprocess.run([sys.executable, ROOT / "dreamer.py", *flags], cwd=folder,
                          capture_output=True, text=True)


def test_a_run_in_the_example_environment_has_its_name_and_parameters(folder, monkeypatch):
    monkeypatch.setattr(dreamer, "train", lambda *_: None)
    assert dreamer.main(["--env", "my_env:Line", "--env-param", "stride=0.2"]) == 0
    (made,) = (folder / "runs").iterdir()
    assert made.name.startswith("my_env-Line-0-")
    assert "stride: 0.2" in (made / "config.yaml").read_text(encoding="utf-8")


def test_a_step_of_learning_fits_the_example_environment_and_it_is_filmed(folder):
    made = _run_of(folder / "run", "my_env:Line")
    program = Agent(made, env="my_env:Line").program
    loop = dreamer.init.eval_shape(program, jax.random.key(0))
    after, _, _ = dreamer.train_chunk.eval_shape(program, loop, 2)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, loop)
    assert watch.main([str(made), "--env", "my_env:Line"]) == 0
    assert (made / "episode-0.gif").is_file()


@pytest.mark.slow
def test_the_example_environment_is_trained_and_filmed(folder):
    assert dreamer.main(["--env", "my_env:Line", "--env-param", "stride=0.2", "--preset", "debug",
                         "--set", "run.eval_limit=60"]) == 0
    (made,) = (folder / "runs").iterdir()
    assert made.name.startswith("my_env-Line-0-")
    assert "stride: 0.2" in (made / "config.yaml").read_text(encoding="utf-8")
    assert watch.main([str(made), "--env", "my_env:Line"]) == 0
    assert (made / "episode-0.gif").is_file()


@pytest.mark.slow
def test_the_example_environment_is_learned(folder):
    done = run(folder, "--env", "my_env:Line", "--steps", "4000")
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"score +(\S+) over", done.stdout)[1]) > -6.0
