"""The optimiser: adaptive gradient clipping and LaProp, as a chain of optax transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from utils.core.devices import averaging


def adaptive_gradient_clipping(limit, floor):
    """Scale a tensor's gradient down to ‖g‖ ≤ limit · max(floor, ‖w‖), one norm per whole tensor.

    Source: Brock et al. 2021, per tensor as in the official code (golden file 6_optimizer).
    Differs: `optax.adaptive_grad_clip` takes one norm per output unit."""
    clip = partial(_clip, limit, floor)
    return optax.stateless(lambda grads, weights: jax.tree.map(clip, grads, weights))


def _clip(limit, floor, grad, weight):
    allowed = limit * jnp.maximum(floor, jnp.linalg.norm(weight.ravel()))
    return grad / jnp.maximum(1.0, jnp.linalg.norm(grad.ravel()) / allowed)


def learning_rate(peak, warmup, final, updates):
    """Linear warm-up from 0 to `peak` over `warmup` updates, then linear to final · peak.

    `final` 1 keeps the rate constant, which is what the paper does. `updates` is the whole run."""
    rise = optax.linear_schedule(0.0, peak, warmup)
    fall = optax.linear_schedule(peak, final * peak, max(1, updates - warmup))
    return optax.join_schedules([rise, fall], [warmup])


def laprop(config, updates):
    """Mean of all devices, AGC, division by the root mean square, momentum, learning rate.

    Source: Ziyin et al. 2020; Table "optimizer" of the paper, golden file 6_optimizer."""
    rate = learning_rate(config.lr, config.warmup, config.lr_final, updates)
    laprop_of_vector = optax.chain(
        optax.scale_by_rms(config.rms_decay, config.eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(config.momentum, debias=True),
        optax.scale_by_learning_rate(rate),
    )
    # Flat, because XLA compiles and runs a few operations on one long vector faster than the same
    # operations on each of seventy tensors.
    clip = adaptive_gradient_clipping(config.agc, config.agc_floor)
    return optax.chain(averaging(), clip, optax.flatten(laprop_of_vector))
