"""Training and evaluation where the host steps the worlds, beside what is compiled.

The same functions of dreamer.py as ever, but compiled in two parts instead of one loop: one step of
the policy in E worlds, which hands its actions out, and the rest of a round: the rows that the host
has collected go into the replay, and U updates follow.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from utils.core import replay as replay_buffer
from utils.core.settings import updates_per_steps
from utils.worlds.host import Worlds

WORLDS = 1  # random stream of a run's key: training uses its splits


class Parts(NamedTuple):
    """The functions of dreamer.py that are used here."""

    assemble: Any
    start_episodes: Any
    play: Any
    update: Any
    on_all_devices: Any


class Played(NamedTuple):
    """One step of E worlds: the ActorState, the key for the next step, and what was played."""

    actor: Any
    key: jax.Array
    row: Any  # Transition [E]
    stats: Any  # EpisodeStats [E]


class Policy(NamedTuple):
    """The weights as a list: a tree of them would take longer to hand over than the step itself."""

    leaves: list
    structure: Any

    @classmethod
    def of(cls, params):
        """From weights on the host, or the first device's copy of those that are on all."""
        leaves, structure = jax.tree.flatten(params)
        return cls([leaf.addressable_data(0) if isinstance(leaf, jax.Array) else jnp.array(leaf)
                    for leaf in leaves], structure)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _play(parts, program, structure, leaves, actor, key):
    """One step of the policy, on one device; no replay passes, and no optimiser: -> Played"""
    params = jax.tree.unflatten(structure, leaves)
    key, play_key = jax.random.split(key)
    actor, row, stats = parts.play(program, parts.assemble(program, params), actor, play_key)
    return Played(actor, key, row, stats)


def _written(replay, rows):
    """The replay with rows [E, k, ...] appended."""

    def one(replay, row):
        return replay_buffer.write(replay, row), None

    rows = jax.tree.map(lambda column: jnp.swapaxes(column, 0, 1), rows)
    return jax.lax.scan(one, replay, rows)[0]


_write = jax.jit(_written, donate_argnums=0)


def _round(parts, program, state, updates):
    """Append the rows that stand in the place of `state.actor`, then update

    -> RunnerState without actor, no EpisodeStats, metrics [updates]."""

    def one(state, _):
        return parts.update(program, state)

    state = state._replace(replay=_written(state.replay, state.actor), actor=None)
    state, metrics = jax.lax.scan(one, state, None, updates)
    return state, None, metrics


@partial(jax.jit, static_argnums=(0, 1, 4), donate_argnums=2)
def _learn(parts, program, state, rows, updates):
    """`_round` on all devices, with the rows [E, k, ...] that the host has played."""
    state = state._replace(actor=rows)
    return parts.on_all_devices(partial(_round, parts), program, state, updates)


class HostLoop:
    """Worlds that the host steps, for training and for evaluation.

    They cannot be saved: the first call begins an episode in each, also in a run that is resumed.
    `steps` are those of the run so far.

    Raises: GuestError for an error in a world."""

    def __init__(self, parts, steps=0):
        self.parts, self._steps, self._key = parts, steps, None
        self._worlds = self._others = None  # for training, and for evaluation

    def prefill(self, program, state, steps):
        """Play `steps` steps into the replay: -> RunnerState, EpisodeStats [steps, E]"""
        state = self._begun(program, state)
        actor, rows, stats = self._rollout(program, state.agent.params, state.actor, steps)
        return state._replace(actor=actor, replay=_write(state.replay, rows)), stats

    def chunk(self, program, rounds, learn, state):
        """`rounds` times k steps of each world and U updates, like dreamer.train_chunk

        `learn` is compiled. -> RunnerState, EpisodeStats [rounds, k, E], metrics [rounds, U]."""
        state, (_, k) = self._begun(program, state), updates_per_steps(program.config)
        actor, stats, metrics = state.actor, [], []
        for _ in range(rounds):
            actor, rows, found = self._rollout(program, state.agent.params, actor, k)
            state, _, measured = learn(state._replace(actor=None), rows)
            stats.append(found)
            metrics.append(measured)
        return state._replace(actor=actor), _stacked(stats), _stacked(jax.device_get(metrics))

    def _begun(self, program, state):
        """Begin episodes in the worlds, if this has not been done: -> RunnerState"""
        if self._worlds is not None:
            return state
        self._worlds = Worlds(program.env, program.config.run.envs, steps=self._steps)
        self._key, begin_key = jax.random.split(jax.random.fold_in(state.key, WORLDS))
        actor = self._worlds.begin(state.actor, begin_key)
        return state._replace(actor=actor, replay=_closed(state.replay))

    def _rollout(self, program, params, actor, steps):
        """-> ActorState, rows [E, steps, ...], EpisodeStats [steps, E], of the host"""
        policy, rows, stats = Policy.of(params), [], []
        for _ in range(steps):
            played = _play(self.parts, program, policy.structure, policy.leaves, actor, self._key)
            self._key = played.key
            actor = self._worlds.carry_out(played.actor)
            rows.append(_on_host(played.row))
            stats.append(_on_host(played.stats))
        return actor, _stacked(rows, 1), _stacked(stats)

    def evaluate(self, program, params, key):
        """Returns and lengths [episodes] of fresh episodes, like dreamer.evaluate"""
        run, parts = program.config.run, self.parts
        if self._others is None:
            self._others = Worlds(program.env, run.eval_episodes, "an evaluation")
        start_key, key = jax.random.split(key)
        actor = parts.start_episodes(program, run.eval_episodes, start_key)
        actor = self._others.begin(actor, start_key)
        policy, done = Policy.of(params), None
        for _ in range(run.eval_limit):
            played = _play(parts, program, policy.structure, policy.leaves, actor, key)
            key, stats = played.key, _on_host(played.stats)
            done = stats if done is None else jax.tree.map(
                partial(np.where, done.is_last), done, stats)
            if done.is_last.all():
                break
            actor = self._others.carry_out(played.actor, ~done.is_last)
        return done.episode_return, done.length


def calls(parts, steps):
    """(prefill, train_chunk, evaluate) of devices.Calls, for a run of so many steps so far."""
    loop = HostLoop(parts, steps)
    return loop.prefill, Chunk(loop), loop.evaluate


class Chunk(NamedTuple):
    """A chunk of training, compiled in the two stages of a jitted function."""

    loop: HostLoop
    program: Any = None
    rounds: int = 0
    lowered: Any = None

    def lower(self, program, shapes, rounds):
        """The first stage, for the shapes of a RunnerState."""
        updates, k = updates_per_steps(program.config)
        rows = jax.tree.map(
            lambda column: jax.ShapeDtypeStruct((len(column), k, *column.shape[2:]),
                                                column.dtype), shapes.replay.rows)
        lowered = _learn.lower(
            self.loop.parts, program, shapes._replace(actor=None), rows, updates)
        return Chunk(self.loop, program, rounds, lowered)

    def compile(self, options):
        """The second stage: -> function of a RunnerState."""
        return partial(self.loop.chunk, self.program, self.rounds, self.lowered.compile(options))


def _on_host(tree):
    return jax.tree.map(np.asarray, tree)  # for small arrays, faster than jax.device_get


def _stacked(trees, axis=0):
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def _closed(replay):
    """The replay with each row marked as the last of its episode that none of it follows

    A run that is resumed begins new episodes, and no time limit or end had closed the old ones.
    Rows of checkpoints are written once: a later checkpoint still has them open."""
    size, written = replay_buffer.ring_size(replay), int(replay.written)
    if not written:
        return replay
    following = np.roll(replay.rows.is_first, -1, axis=1)
    following[:, (written - 1) % size] = True
    following[:, written:] = False  # nothing has been written there
    is_last = jnp.asarray(np.asarray(replay.rows.is_last) | following)
    return replay._replace(rows=replay.rows._replace(is_last=is_last))
