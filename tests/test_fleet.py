"""Unusual and wrong environments of users: played as they say, or refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dreamer
import gymnax_wrappers
from utils.core.user_env import GuestError
from utils.run import arrays


@pytest.mark.parametrize("name, words", [
    ("Blind", ["entry [0] of the observation", "info['final_observation']", "must change both"]),
    ("Narrow", ["float32[1] from step", "float32[2] as info['final_observation']"]),
    ("Older", ["step returns 5 values", "expected 6", "truncated"]),
    ("Done", ["terminated is true where only max_steps_in_episode ends the episode"]),
    ("DoneOfSix", ["terminated is true where only max_steps_in_episode ends the episode"]),
    ("Deaf", ["info['final_observation']", "on a step that ends no episode"]),
    ("Losing", ["step seems to reset by itself", "expected info['final_observation']"]),
    ("FromOne", ["the observation is 3, expected 0 to 2 for Discrete(3)"]),
    ("Huge", ["actions without bounds", "-3.40282e+38 to 3.40282e+38"]),
    ("Upside", ["actions from 1 to -1", "low below high"]),
    ("Idle", ["has no actions"]),
    ("Handless", ["has no actions"]),
    ("Empty", ["observations float32[0]", "at least one real number"]),
    ("Keys", ["observations key<fry>[]", "real number"]),
    ("Complex", ["observations complex64[2]", "real number"]),
])
def test_what_cannot_be_learned_correctly_is_refused_in_one_line(name, words):
    with pytest.raises(GuestError) as caught:
        gymnax_wrappers.make(f"tests.fleet:{name}")
    line = str(caught.value)
    assert line.startswith(f"run.env: tests.fleet:{name}") and "\n" not in line
    assert all(word in line for word in words), line


def play(name, actions):
    """The Environment, and its first row and one row per action, as arrays [rows, ...]."""
    env = gymnax_wrappers.make(f"tests.fleet:{name}")
    state, first = env.reset(jax.random.key(0))
    rows = [first]
    for action in actions:
        state, row = env.step(jax.random.key(1), state, jnp.asarray(action, jnp.float32))
        rows.append(row)
    return env, jax.tree.map(lambda *parts: np.stack(parts), *rows)


LEFT, STAY, RIGHT = np.eye(3)


@pytest.mark.parametrize("name", ["Walk", "legacy"])
def test_a_time_limit_and_an_end_are_told_apart(name):
    _, rows = play(name, [STAY] * 6 + [RIGHT] * 3)
    assert np.flatnonzero(rows.is_first).tolist() == [0, 6]
    assert np.flatnonzero(rows.is_last).tolist() == [5, 9]
    assert np.flatnonzero(rows.is_terminal).tolist() == [9]
    assert rows.x[:, 0].tolist() == [0] * 7 + [1, 2, 3]


def test_an_observation_that_a_wrapper_changes_reaches_every_row():
    _, rows = play("Scaled", [RIGHT] * 3 + [LEFT])
    assert rows.x[:, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0])


def test_an_overridden_step_and_an_overridden_reset_are_used():
    _, rows = play("OtherReward", [RIGHT] * 3)
    assert rows.r.tolist() == [0, 101, 102, 103]
    _, rows = play("OtherStart", [RIGHT] * 6)
    assert rows.x[:, 0].tolist() == [-2, -1, 0, 1, 2, 3, -2]


def test_whole_actions_are_rounded_to_the_nearest():
    _, rows = play("Fingers", [[-1], [-0.7], [-0.6], [0.3], [0.7]])
    assert rows.r.tolist() == [0, 0, 0, 1, 2, 3]


def test_an_action_reaches_lopsided_bounds():
    _, rows = play("Lopsided", [[-1], [1], [-2]])
    assert rows.r.tolist() == [0, -1, np.float32(1e30), -1]


def test_episodes_of_one_action_and_without_an_end():
    env, rows = play("Short", [RIGHT] * 4)
    assert rows.is_last.tolist() == [False, True] * 2 + [False]
    assert not rows.is_terminal.any() and env.time_limit == 1
    for name in ("Unlimited", "Endless"):
        env, rows = play(name, [STAY] * 12)
        assert not rows.is_last.any() and env.time_limit is None
        assert "at most" not in env.describe()


@pytest.mark.parametrize("name, words", [
    ("Ids", ["no pixel above 1", "255"]),
    ("ChannelsFirst", ["3 rows of 8 pixels with 8 colours"])])
def test_an_unusual_image_gets_a_note(name, words):
    (line,) = gymnax_wrappers.make(f"tests.fleet:{name}").notes(eval_limit=1000)
    assert all(word in line for word in words), line


def test_evaluations_below_the_time_limit_get_a_note():
    env = gymnax_wrappers.make("tests.fleet:Walk")
    (line,) = env.notes(eval_limit=4)
    assert "run.eval_limit = 4" in line and "5 steps" in line
    assert env.notes(eval_limit=5) == []


@pytest.mark.parametrize("name, words", [
    ("Late", "entry [1] of the observation is nan"), ("LateReward", "the reward is -inf"),
    ("LateImage", "entry [1][2] of the image is 1.5, expected 0 to 1"),
    ("LateClass", "the observation is 3, expected 0 to 2")])
def test_a_number_that_is_wrong_later_is_found_in_its_row(name, words):
    env = gymnax_wrappers.make(f"tests.fleet:{name}")

    def step(state, key):
        state, _ = env.step(key, state, jnp.zeros(env.action_size))
        return state, state.fault

    state, _ = env.reset(jax.random.key(0))
    _, faults = jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 160))
    kinds = np.asarray(faults.kind)
    assert not kinds[:149].any() and kinds[149:].all()  # row 0 is that of the reset
    assert f"run.env: tests.fleet:{name}: " in env.fault(faults) and words in env.fault(faults)


def test_a_run_ends_with_the_line_and_keeps_what_was_saved(tmp_path, capsys):
    flags = ["--env", "tests.fleet:Late", "--set", "run.eval_limit=20", "--steps", "1000",
             "--set", "run.save_every=128", "--preset", "debug"]
    assert dreamer.main([*flags, "--logdir", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "tests.fleet:Late: entry [1] of the observation is nan" in lines[0]
    assert "found before step" in lines[0] and "to resume" in lines[1]
    assert dreamer.prefill._cache_size() == 0  # a next run in this process has the memory again


def test_a_state_of_types_that_numpy_does_not_know_is_saved_and_loaded(tmp_path):
    env = gymnax_wrappers.make("tests.fleet:Small")
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    arrays.save(tmp_path / "state.npz", arrays.flatten(state))
    loaded = arrays.unflatten(jax.eval_shape(lambda: state), arrays.load(tmp_path / "state.npz"))
    assert loaded.inner.small.dtype == jnp.bfloat16 and loaded.inner.tiny.dtype == jnp.float8_e4m3fn
    assert (float(loaded.inner.small), float(loaded.inner.tiny)) == (1.5, 0.5)


def test_a_run_that_cannot_fit_into_memory_is_refused_before_it_leaves_a_folder(tmp_path, capsys):
    flags = ["--set", "replay.capacity=2000000000", "--logdir", str(tmp_path / "run")]
    assert dreamer.main(flags) == 2
    line = capsys.readouterr().err
    assert "GB: lower replay.capacity" in line
    assert "(replay " in line and "model" not in line  # a part that is small is not named
    assert not (tmp_path / "run").exists()
