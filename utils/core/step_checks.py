"""Checks of every row that a user's environment gives, inside the compiled loop.

A check costs a comparison. What it finds stays in the environment's state, and the host reads it
after each chunk of training. Only the first fault of an environment is kept.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Fault(NamedTuple):
    """The first wrong number of an environment; with a leading axis [E] for several."""

    kind: Any  # [] int32: 0 for none, else 1 + the place in MESSAGES
    entry: Any  # [] int32: index in the flat observation
    value: Any  # [] float32


MESSAGES = (
    "{entry} of the observation is {value:g}, expected finite numbers",
    "the reward is {value:g}, expected a finite number",
    "{entry} of the image is {value:g}, expected 0 to 1, or uint8 (run.observation=vector accepts "
    "any number)",
    "the observation is {value:g}, expected 0 to {most} for Discrete({classes})",
    "{entry} of the observation is not that of info['final_observation'] on a step that ends no "
    "episode: a wrapper that changes one must change both, or end the episode where the wrapped "
    "environment does",
    "the state's time is 0 after the last step of an episode, so step seems to reset by itself: "
    "expected info['final_observation'], the observation before the reset",
)
ROUNDING = 1e-4  # two compiled forms of one number may differ by less


def none():
    """No fault."""
    return Fault(jnp.int32(0), jnp.int32(0), jnp.float32(0))


def after_reset(fault, env, x):
    """The Fault after a reset with the raw observation x; an earlier one stays."""
    return _first(fault, _observation(env, x))


def after_step(fault, env, x, outcome):
    """The Fault after a step to the raw observation x, with this Outcome of user_env.py

    An earlier fault stays."""
    continues = ~(outcome.ended | outcome.cut)
    seen, last = (jnp.ravel(part).astype(jnp.float32) for part in (outcome.x, outcome.last))
    differs = continues & (jnp.abs(seen - last) > ROUNDING * (1.0 + jnp.abs(last)))
    return _first(fault, (
        *_observation(env, x),
        (1, ~jnp.isfinite(outcome.r)[None], outcome.r[None]),
        (4, differs, seen),
        (5, outcome.lost[None], outcome.r[None])))


def message(fault, env):
    """The line for the first Fault of several environments [E] or steps; None if all are well."""
    kinds = np.asarray(fault.kind).ravel()
    if not kinds.any():
        return None
    place = np.flatnonzero(kinds)[0]
    entry, value = (np.asarray(part).ravel()[place] for part in (fault.entry, fault.value))
    where = "".join(f"[{n}]" for n in np.unravel_index(int(entry), env.raw_shape or (1,)))
    return MESSAGES[kinds[place] - 1].format(
        entry=f"entry {where}", value=float(value), classes=env.classes,
        most=env.classes and env.classes - 1)


def _observation(env, x):
    """[(place in MESSAGES, which entries are wrong, their values)] of a raw observation."""
    x = jnp.ravel(x)
    found = [(0, ~jnp.isfinite(x), x)]
    if env.is_image and not env.is_bytes:
        found.append((2, (x < 0) | (x > 1), x))
    if env.classes is not None:
        found.append((3, (x < 0) | (x >= env.classes), x))
    return found


def _first(fault, found):
    for place, wrong, values in found:
        entry = jnp.argmax(wrong)
        new = Fault(jnp.int32(place + 1), entry.astype(jnp.int32),
                    values[entry].astype(jnp.float32))
        takes = (fault.kind == 0) & wrong.any()
        fault = jax.tree.map(lambda now, old, takes=takes: jnp.where(takes, now, old), new, fault)
    return fault
