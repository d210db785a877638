"""The time line drawn in dreamer.py is what is stored, what is scored and what the model meets."""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import dreamer
from gymnax_wrappers import Step
from utils.core import config
from utils.core.settings import Config

ROWS, FIRST = 7, 3  # rows of a replayed sequence, and where in it a new episode begins


class Place(NamedTuple):
    """Where the script stands: in which episode, and its time."""

    episode: jax.Array
    t: jax.Array


class Script:
    """Even episodes end at t = 3, odd ones are cut at t = 2; x_t = t, r_t = 101 + a_{t-1} / 10."""

    x_shape, x_dtype, is_image, action_size, discrete = (1,), jnp.float32, False, 1, False

    def reset(self, key):
        """The first row of the first episode."""
        return self._arrive(Place(jnp.int32(0), jnp.int32(0)), 0.0)

    def step(self, key, place, action):
        """The next row; after the last row of an episode the action counts for nothing."""
        over = self._over(place)
        place = Place(place.episode + over, jnp.where(over, 0, place.t + 1))
        return self._arrive(place, jnp.where(over, 0.0, 101.0 + action[0] / 10.0))

    def _over(self, place):
        return place.t == jnp.where(place.episode % 2 == 0, 3, 2)

    def _arrive(self, place, r):
        over, x = self._over(place), place.t.astype(jnp.float32)[None]
        return place, Step(x, jnp.float32(r), place.t == 0, over, over & (place.episode % 2 == 0))


def scripted_act(networks, timestep, latent, a, key):
    """Instead of dreamer.act: a_t = 10 x_t, and h shows the a_{t-1} that was given."""
    return dreamer.Latent(jnp.broadcast_to(a, latent.h.shape), latent.z), 10.0 * timestep.x


def drawing():
    """The drawing in dreamer.py's docstring, and the rows whose actions it puts in brackets."""
    lines = re.search(r"^    row .*?\n\n", dreamer.__doc__, re.M | re.S)[0].splitlines()[:-1]
    cells = {line.split()[0]: re.findall(r"\(?\d+\)?", line) for line in lines}
    numbers = {name: [int(cell.strip("()")) for cell in row] for name, row in cells.items()}
    return numbers, [row for row, cell in enumerate(cells["a"]) if cell.startswith("(")]


@pytest.fixture(scope="module")
def program():
    """A small agent for the scripted environment."""
    return dreamer.build(config.load("dreamer.yaml", Config, ["debug"]), Script())[0]


@pytest.fixture(scope="module")
def loop(program):
    """Two environments just reset, an empty replay, and weights that make the states lively."""
    loop, random = dreamer.init(program, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.array(random.normal(0.0, 0.5, leaf.shape), leaf.dtype), loop.agent.params)
    return loop._replace(agent=loop.agent._replace(params=params))


@pytest.fixture
def scripted(program, loop, monkeypatch):
    """The rows [E, 8] and finished episodes [8, E] of the scripted policy's first eight steps."""
    monkeypatch.setattr(dreamer, "act", scripted_act)
    after, stats = dreamer.rollout(program, loop, 8)
    return jax.tree.map(lambda column: np.asarray(column[:, :8]), after.replay.rows), stats


@pytest.fixture(scope="module")
def observe(program, loop):
    """(start, batch) -> h, z and posterior of rows 1, 2, ..., always with the same randomness."""
    world = dreamer.assemble(program, loop.agent.params).world
    observed = jax.jit(lambda start, batch: dreamer.observe(world, start, batch, jax.random.key(0)))
    return lambda start, batch: jax.tree.map(np.asarray, observed(start, batch))


@pytest.fixture(scope="module")
def replayed(program):
    """A sequence [1, 7] in the middle of which an episode begins, and the state of its row 0."""
    random, model, flags = np.random.default_rng(1), program.config.model, np.zeros((3, 1, ROWS))
    flags = flags.astype(bool)
    flags[0, 0, FIRST] = flags[1, 0, FIRST - 1] = True
    batch = dreamer.Transition(
        random.normal(size=(1, ROWS, 1)), random.normal(size=(1, ROWS)), *flags,
        random.normal(size=(1, ROWS, 1)), random.normal(size=(1, ROWS, model.deter)),
        np.zeros((1, ROWS, model.latents), np.uint8))
    start = dreamer.Latent(batch.h[:, 0], np.eye(model.classes)[batch.z[:, 0]])
    return jax.tree.map(jnp.asarray, (start, batch))


def changed(replayed, what, rows):
    """The same sequence with another x or a in some rows, or another h or z before it."""
    start, batch = replayed
    if what == "h":
        return start._replace(h=-start.h), batch
    if what == "z":
        return start._replace(z=start.z[..., ::-1]), batch
    column = getattr(batch, what)
    return start, batch._replace(**{what: column.at[:, rows].set(-1e4)})


def first_difference(one, other):
    """The first row at which two outcomes of `observe` differ; None where they are the same."""
    differs = [np.any(a != b, axis=tuple({*range(a.ndim)} - {1}))
               for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
    rows = np.flatnonzero(np.any(differs, axis=0)) + 1  # the outcome begins with row 1
    return rows[0] if len(rows) else None


@pytest.mark.rollout
@pytest.mark.play
def test_the_rows_of_the_replay_are_those_of_the_drawing_last_actions_in_brackets(scripted):
    (numbers, in_brackets), (rows, _) = drawing(), scripted
    assert in_brackets == np.flatnonzero(numbers["is_last"]).tolist() != []
    assert list(numbers) == ["row", "x", "r", "is_first", "is_last", "is_terminal", "a"]
    assert numbers.pop("row") == list(range(8))
    for name, expected in numbers.items():
        for ring in getattr(rows, name).reshape(2, 8):
            assert (name, ring.astype(int).tolist()) == (name, expected)


@pytest.mark.rollout
@pytest.mark.play
def test_acting_at_row_t_is_given_the_action_of_row_t_minus_1(scripted):
    (numbers, _), (rows, _) = drawing(), scripted
    for ring in rows.h[..., 0]:
        assert ring.tolist() == [0.0, *numbers["a"][:-1]]


@pytest.mark.rollout
@pytest.mark.play
def test_an_episode_scores_the_sum_of_its_rewards_and_its_number_of_actions(scripted):
    (numbers, _), (_, stats) = drawing(), scripted
    ends = np.flatnonzero(numbers["is_last"])
    assert_array_equal(stats.is_last, np.array([numbers["is_last"]] * 2).T)
    expected = [[101.0 + 102.0 + 103.0] * 2, [101.0 + 102.0] * 2]
    assert_array_equal(stats.episode_return[ends], expected)
    assert_array_equal(stats.length[ends], [[3, 3], [2, 2]])


@pytest.mark.evaluate
@pytest.mark.parametrize("limit, total, length", [(500, 306.0, 3), (3, 203.0, 2)])
def test_an_evaluation_scores_the_first_episode_alone_or_what_the_limit_leaves_of_it(
        program, loop, monkeypatch, limit, total, length):
    monkeypatch.setattr(dreamer, "act", scripted_act)
    run = dataclasses.replace(program.config.run, eval_limit=limit)
    settings = dataclasses.replace(program.config, run=run)
    program = dataclasses.replace(program, config=settings)
    totals, lengths = dreamer.evaluate(program, loop.agent.params, jax.random.key(0))
    assert_array_equal(totals, [total] * 4)
    assert_array_equal(lengths, [length] * 4)


@pytest.mark.rollout
@pytest.mark.act
@pytest.mark.observe
def test_a_row_stores_the_state_from_which_replay_goes_on_as_acting_did(program, loop, observe):
    rows = dreamer.rollout(program, loop, 14)[0].replay.rows
    classes = program.config.model.classes
    for t in range(14 - ROWS):
        batch = jax.tree.map(lambda column, t=t: column[:1, t : t + ROWS], rows)
        start = dreamer.Latent(batch.h[:, 0], jax.nn.one_hot(batch.z[:, 0], classes))
        assert_allclose(observe(start, batch)[0].h[:, 0], batch.h[:, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.observe
@pytest.mark.observe_step
@pytest.mark.parametrize("what", ["x", "a", "h", "z"])
def test_nothing_before_a_first_row_reaches_it_or_what_follows(replayed, observe, what):
    before = slice(1 if what == "x" else 0, FIRST)
    usual, other = observe(*replayed), observe(*changed(replayed, what, before))
    assert first_difference(usual, other) == 1
    after = [jax.tree.map(lambda x: x[:, FIRST - 1 :], outcome) for outcome in (usual, other)]
    assert first_difference(*after) is None


@pytest.mark.observe
@pytest.mark.observe_step
@pytest.mark.parametrize("what", ["x", "a", "h", "z"])
def test_without_a_first_row_the_past_goes_on(replayed, observe, what):
    start, batch = replayed
    replayed = start, batch._replace(is_first=jnp.zeros_like(batch.is_first))
    outcomes = [observe(*replayed), observe(*changed(replayed, what, slice(1, FIRST)))]
    after = [jax.tree.map(lambda x: x[:, FIRST - 1 :], outcome) for outcome in outcomes]
    assert first_difference(*after) == 1


@pytest.mark.observe
@pytest.mark.parametrize("row", range(ROWS))
def test_the_action_of_row_t_changes_h_from_row_t_plus_1_on_unless_an_episode_ends_there(
        replayed, observe, row):
    usual, other = observe(*replayed), observe(*changed(replayed, "a", slice(row, row + 1)))
    never_carried_out = row in (FIRST - 1, ROWS - 1)
    assert first_difference(usual, other) == (None if never_carried_out else row + 1)
    if not never_carried_out:
        assert (usual[0].h[:, row] != other[0].h[:, row]).any()


@pytest.mark.observe
@pytest.mark.sequence_step
def test_an_action_beyond_1_meets_the_model_as_1_and_one_within_as_it_is(replayed, observe):
    start, batch = replayed
    outcomes = [observe(start, batch._replace(a=jnp.full_like(batch.a, a)))
                for a in (1.0, 7.0, 0.5)]
    assert first_difference(outcomes[0], outcomes[1]) is None
    assert first_difference(outcomes[0], outcomes[2]) == 1
