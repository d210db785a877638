"""Consecutive chunks of training: the device computes one while the host processes another.

Where the host itself steps the worlds, it plays a chunk when the one before has been processed: an
error in a world then leaves everything before it logged and saved.
"""

from typing import Any, NamedTuple

import jax

from utils.core.settings import rounds_per_chunk, updates_per_steps
from utils.hosts import parts
from utils.hosts.watch import WATCH


class Chunk(NamedTuple):
    """The results of a training chunk on the host."""

    steps: int  # of all environments together
    updates: int
    stats: Any  # EpisodeStats [rounds, k, E]
    metrics: dict
    fault: Any  # what the checks of the user's environments [E] have found
    params: Any  # weights to evaluate, None where no evaluation is due
    state: Any  # RunnerState to save, None where no save is due


def train_chunks(program, train_chunk, state, session):
    """Yields consecutive Chunks. While the host processes one, the device computes the next.

    `train_chunk` is compiled, and takes the arrays of the RunnerState `state` for its own."""
    config, ahead = program.config, not program.env.on_host
    updates, k = updates_per_steps(config)
    rounds, goes_on = rounds_per_chunk(config), True
    state = parts.placed(config, state)
    parts.meet("the first chunk")
    running = train_chunk(state)
    while goes_on:
        with WATCH.a_chunk():
            state, stats, metrics = jax.block_until_ready(running)
        steps = rounds * k * config.run.envs
        fault = parts.own(state.actor.env.fault)
        evaluates, saves, goes_on = session.due(steps)
        params = parts.own(state.agent.average) if evaluates else None
        saved = parts.own(state) if saves else None
        if goes_on and ahead:
            running = train_chunk(state)
        yield Chunk(steps, rounds * updates, stats, metrics, fault, params, saved)
        if goes_on and not ahead:
            running = train_chunk(state)
