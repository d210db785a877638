"""Several agents in one compiled program."""

import jax


def side_by_side(function, axes, donate=None):
    """A compiled function of one agent as one of several agents, which have an axis in front.

    `axes` says of each argument whether it has that axis (0) or is static and shared (None);
    `donate` is the number of the argument whose memory may be used again."""
    static = tuple(place for place, axis in enumerate(axes) if axis is None)
    mapped = jax.vmap(function.__wrapped__, axes)
    return jax.jit(mapped, static_argnums=static, donate_argnums=donate)
