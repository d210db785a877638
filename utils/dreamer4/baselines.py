"""What the figures of each phase are compared with: known from the world and its data alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from utils.dreamer4 import square

OTHERS = len(square.ACTIONS) - 1  # actions to change to


def baselines(config, phase, videos, key):
    """The yardsticks of a phase on held-out Videos: -> {figure: {what: value}}

    `key` is that of the phase's figures: episodes begin at the same squares."""
    return {"tokenizer": images, "dynamics": dreams, "agent": agents,
            "policy": policies}[phase](config, videos, key)


def images(config, videos, key):
    """dB of each image's background alone, and of the colour that is best for each image."""
    x = videos.x / np.float32(255.0)
    background = jnp.median(x, (-3, -2), keepdims=True)  # squares cover less than half
    constant = x.mean((-3, -2), keepdims=True)
    return {"psnr": {"background only": decibels(background - x),
                     "best constant": decibels(constant - x)}}


def dreams(config, videos, key):
    """dB of the last frame before a dream, repeated."""
    evaluation, k = config.evaluation, config.imagination.k
    n, end = evaluation.context, evaluation.context + evaluation.frames
    x = videos.x[:, n - 1 : end] / np.float32(255.0)
    error = x[:, 1:] - x[:, :1]
    return {f"psnr_k{k}": {"last frame repeated": decibels(error)},
            f"first_k{k}": {"last frame repeated": decibels(error[:, 0])},
            f"last_k{k}": {"last frame repeated": decibels(error[:, -1])}}


def agents(config, videos, key):
    """What is known of the next action from the past; the mean reward as a prediction; returns."""
    r = videos.r[:, config.evaluation.context :]
    nll, accuracy = bounds(config.world)
    return {"nll": nll, "accuracy": accuracy,
            "reward_error": {"always the mean": jnp.abs(r - r.mean()).mean()},
            } | policies(config, videos, key)


def policies(config, videos, key):
    """Mean real returns of random actions, of the data's policy and of the best one."""
    found = {what: returns(config, choose, key).mean() for what, choose in
             (("random", random), ("data", hold), ("best", best))}
    return {"return_sampled": found, "return_greedy": found}


def decibels(error):
    """Peak signal-to-noise ratio for images from 0 to 1."""
    return -10.0 * jnp.log10(jnp.mean(jnp.square(error)))


def bounds(world):
    """Best -ln p and accuracy for the next action of the data's policy: two dicts

    From the action before alone, and from how long it has been held, too."""
    lengths = np.arange(1, world.hold_high + 1)
    survival = np.array([np.mean(np.arange(world.hold_low, world.hold_high + 1) >= n)
                         for n in [*lengths, world.hold_high + 1]])
    share = survival[:-1] / survival[:-1].sum()  # of the steps at which it has been held for n
    stays = survival[1:] / survival[:-1]
    mean = np.sum(share * stays)
    nll, accuracy = _scores(stays)
    simple_nll, simple_accuracy = _scores(mean)
    return ({"last action known": simple_nll, "whole past known": np.sum(share * nll)},
            {"last action known": simple_accuracy, "whole past known": np.sum(share * accuracy)})


def _scores(stays):
    """Entropy and largest probability of a choice: the same action, or one of the others."""
    other = (1.0 - stays) / OTHERS
    parts = [np.where(p > 0.0, p * np.log(np.maximum(p, 1e-30)), 0.0) for p in (stays, other)]
    return -(parts[0] + OTHERS * parts[1]), np.maximum(stays, other)


@partial(jax.jit, static_argnums=(0, 1))
def returns(config, choose, key):
    """Returns [evaluation.episodes] of episodes from the starts of `dreamer4.play`

    choose(key, squares, world, t) gives each square's action."""
    world, steps = config.world, config.evaluation.steps
    start_key, key = jax.random.split(key)
    starts = jax.random.split(start_key, config.evaluation.episodes)
    squares = jax.vmap(partial(square.start, world=world))(starts)
    actions = choose(key, squares, world, steps)

    def step(squares, t):
        a = square.nearest_action(squares, world) if actions is None else actions[:, t]
        after = square.move(squares, a, world)
        return after, square.reward(after, world)

    return jax.lax.scan(step, squares, jnp.arange(steps))[1].sum(0)


def random(key, squares, world, steps):
    """Actions [E, steps], each with the same probability."""
    return jax.random.randint(key, (len(squares.side), steps), 0, len(square.ACTIONS))


def hold(key, squares, world, steps):
    """Actions [E, steps] of the data's policy."""
    keys = jax.random.split(key, len(squares.side))
    return jax.vmap(partial(square.hold_actions, world=world, length=steps))(keys)


def best(key, squares, world, steps):
    """None: the action after which the reward is largest depends on where the square is."""
