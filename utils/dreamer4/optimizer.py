"""Muon for the matrices of the transformers' blocks, Adam for all else, and their schedule."""

from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import optax

# Of the quintic iteration x <- a x + b (x xᵀ) x + c (x xᵀ)² x, which drives singular values towards
# 1: these raise small ones fastest, and end between about 0.7 and 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)


def schedule(peak, updates, optimizer):
    """Linear warm-up from 0, constant, then linear to `final` · peak at the last of `updates`"""
    rise = optax.linear_schedule(0.0, peak, optimizer.warmup)
    flat = max(optimizer.warmup, round(optimizer.constant * updates))
    fall = optax.linear_schedule(peak, optimizer.final * peak, max(1, updates - flat))
    return optax.join_schedules([rise, optax.constant_schedule(peak), fall],
                                [optimizer.warmup, flat])


def make(config, section, updates):
    """The optimiser of a phase: `section` has its learning rates `adam` and `muon`

    Muon's rate is 0 for Adam alone, as in phase 4, which trains no block."""
    optimizer = config.optimizer
    muon_rate = section.muon if hasattr(section, "muon") else 0.0
    adam = optax.chain(
        optax.clip_by_global_norm(optimizer.clip),
        # Flat: XLA compiles and runs one long vector faster than a hundred tensors.
        optax.flatten(optax.adam(schedule(section.adam, updates, optimizer), optimizer.b1,
                                 optimizer.b2, optimizer.eps)))
    if not muon_rate:
        return adam
    matrices = optax.chain(
        muon(optimizer.momentum, optimizer.newton_schulz),
        optax.scale_by_learning_rate(schedule(muon_rate, updates, optimizer)))
    return optax.partition({"adam": adam, "muon": matrices}, kinds)


def kinds(params):
    """ "muon" for each matrix of a transformer's block, "adam" for any other weight"""
    return jax.tree_util.tree_map_with_path(_kind, params)


def _kind(path, _):
    place = jax.tree_util.keystr(path)
    return "muon" if "'blocks'" in place and "'matrix'" in place else "adam"


def orthogonal(x, iterations):
    """Newton-Schulz: matrices with the singular vectors of x and singular values near 1

    Shapes: x [n, I, O] -> [n, I, O].
    Source: Jordan et al. 2024, Muon."""
    a, b, c = QUINTIC
    turned = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-1, -2) if turned else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.swapaxes(-1, -2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.swapaxes(-1, -2) if turned else x


def muon(momentum, iterations):
    """Nesterov's momentum, made orthogonal, × √max(1, O/I): matrices [I, O] -> steps of [I, O]

    Matrices of one shape, turned or not, are made orthogonal together."""
    return optax.chain(optax.trace(momentum, nesterov=True),
                       optax.stateless(partial(_orthogonal_steps, iterations)))


def _orthogonal_steps(iterations, updates, _):
    leaves, tree = jax.tree.flatten(updates)
    groups, steps = defaultdict(list), {}
    for place, leaf in enumerate(leaves):
        groups[tuple(sorted(leaf.shape))].append(place)
    for places in groups.values():
        turned = [leaves[n].T if leaves[n].shape[0] > leaves[n].shape[1] else leaves[n]
                  for n in places]
        for n, step in zip(places, orthogonal(jnp.stack(turned), iterations)):
            inputs, outputs = leaves[n].shape
            step = step.T if inputs > outputs else step
            steps[n] = step * max(1.0, outputs / inputs) ** 0.5
    return jax.tree.unflatten(tree, [steps[n] for n in range(len(leaves))])
