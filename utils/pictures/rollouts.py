"""What a trained agent plays and dreams, as arrays: the material of the report's figures.

Shapes: E environments of L rows each (the time line of dreamer.py), N starts, M dreams of each,
H steps. Stands on top of dreamer.py.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import dreamer
from gymnax_wrappers import Step

ENVS, ROWS = 32, 512  # E and L of the episodes that are played
RANDOM_ACTIONS = 40  # at most, with which each episode of the second half of them begins


class Played(NamedTuple):
    """Rows of E environments [E, L, ...]."""

    rows: dreamer.Row
    env: Any  # the environments' states, to go on from
    t: jax.Array  # place in the episode
    is_random: jax.Array  # whether chance chose the action here, not the policy


class Said(NamedTuple):
    """Posterior states of played rows, and what the heads say of them; [E, L, ...]."""

    latent: dreamer.Latent
    r: jax.Array
    c: jax.Array  # chance that the world goes on, without the discount
    values: jax.Array


class Imagined(NamedTuple):
    """H dreamed steps of N starts: means over M dreams [N, H, ...].

    `alive` is the chance that the world has not ended so far, and `r` the reward times the chance
    that it is still paid. `dreams` are the observations of the first start, [M, H, X]."""

    x: jax.Array
    r: jax.Array
    alive: jax.Array
    values: jax.Array
    dreams: jax.Array


@partial(jax.jit, static_argnums=(0, 2))
def play(program, params, size, key):
    """Episodes of E environments one after the other: size (E, L) -> Played

    In the first half of the environments the agent acts alone; in the others each episode begins
    with 1 to RANDOM_ACTIONS random actions, so that there are falls and odd states to foresee."""
    networks, (envs, length), half = nnx.merge(program.networks, params), size, size[0] // 2
    start_key, play_key = jax.random.split(key)
    shaken = jnp.linspace(1, RANDOM_ACTIONS, envs - half).round()
    shaken = jnp.concatenate([jnp.zeros(half), shaken])

    def step(player, key):
        act_key, random_key, env_key = jax.random.split(key, 3)
        t = player.length + ~player.now.is_first
        latent, a = dreamer.act(networks, player.now, player.latent, player.a, act_key)
        a = jnp.where((t < shaken)[:, None], _random_actions(program.env, random_key, envs), a)
        row = dreamer.Row(*player.now, a, latent.h, jnp.argmax(latent.z, -1).astype(jnp.uint8))
        env, now = jax.vmap(program.env.step)(jax.random.split(env_key, envs), player.env, a)
        after = dreamer.Player(env, now, latent, a, player.total, t * ~player.now.is_last)
        return after, Played(row, player.env, t, t < shaken)

    start = dreamer.start_playing(program, envs, start_key)
    _, played = jax.lax.scan(step, start, jax.random.split(play_key, length))
    return dreamer.time_first(played)


def _random_actions(env, key, envs):
    if env.discrete:
        action = jax.random.randint(key, (envs,), 0, env.action_size)
        return jax.nn.one_hot(action, env.action_size)
    return jax.random.uniform(key, (envs, env.action_size), minval=-1.0, maxval=1.0)


@partial(jax.jit, static_argnums=0)
def judge(program, params, rows, key):
    """Posterior states of rows [E, L, ...] that begin with an episode, and the heads' words: Said

    Pictures are encoded one row at a time: all of them as float32 might not fit the memory."""
    networks, model = nnx.merge(program.networks, params), program.config.model
    envs, length = rows.r.shape

    def step(past, inputs):
        (x, is_first, a), uniform = inputs
        now = networks.world.encode(x), is_first
        latent, _ = dreamer.observe_step(networks.world, *past, now, uniform)
        return (latent, a), latent

    nothing = dreamer.Latent(
        jnp.zeros((envs, model.deter)), jnp.zeros((envs, model.latents, model.classes)))
    uniform = jax.random.uniform(key, (length, envs, model.latents))
    inputs = dreamer.time_first((rows.x, rows.is_first, rows.a)), uniform
    _, latent = jax.lax.scan(step, (nothing, jnp.zeros_like(rows.a[:, 0])), inputs)
    latent = dreamer.time_first(latent)
    return Said(latent, *_heads(program, networks, latent))


def _heads(program, networks, latent):
    """Reward, chance of going on, and value of states."""
    s, config = dreamer.features(latent), program.config
    bins, discount = dreamer.value_bins(config.model.bins), 1.0 - 1.0 / config.learning.horizon
    c = jax.nn.sigmoid(networks.world.continue_(s)[..., 0])
    return (dreamer.twohot_mean(networks.world.reward(s), bins), jnp.minimum(1.0, c / discount),
            dreamer.twohot_mean(networks.critic(s), bins))


@partial(jax.jit, static_argnums=(0, 4))
def imagine(program, params, start, actions, samples, keys):
    """M dreams from each of N states, H steps long, one for each key: -> Imagined

    With true actions [N, H, A], or with the policy's own where `actions` is None."""
    networks, n = nnx.merge(program.networks, params), len(start.h)
    start, actions = jax.tree.map(lambda x: x.repeat(samples, 0), (start, actions))

    def step(carry, inputs):
        (latent, alive), (a, key) = carry, inputs
        action_key, latent_key = jax.random.split(key)
        a = networks.actor(dreamer.features(latent)).sample(action_key) if a is None else a
        h = networks.world.recur(latent, a)
        uniform = jax.random.uniform(latent_key, latent.z.shape[:-1])
        latent = dreamer.Latent(h, dreamer.sample_onehot(uniform, networks.world.prior_probs(h)))
        r, c, values = _heads(program, networks, latent)
        x = decoded(networks.world, latent)
        parts = (x.reshape(n, samples, *x.shape[1:]),
                 *(part.reshape(n, samples) for part in (alive * r, alive * c, values)))
        return (latent, alive * c), Imagined(*(part.mean(1) for part in parts), parts[0][0])

    inputs = None if actions is None else actions.swapaxes(0, 1), keys
    _, imagined = jax.lax.scan(step, (start, jnp.ones(n * samples)), inputs)
    return dreamer.time_first(imagined)


def decoded(world, latent):
    """x̂ in the units of the environment, or 0 to 255: -> [..., X]"""
    x = world.decode(latent)
    return 255.0 * x if world.is_image else dreamer.symexp(x)


@partial(jax.jit, static_argnums=0)
def play_on(program, params, player, keys):
    """Real rows [N, H + 1, ...] from the row where the player stands, H + 1 keys: -> Row"""
    networks = nnx.merge(program.networks, params)

    def step(player, key):
        player, row, _ = dreamer.play(program, networks, player, key)
        return player, row

    return dreamer.time_first(jax.lax.scan(step, player, keys)[1])


def player_at(played, said, places, copies):
    """The Player that stands at rows (environment, row), `copies` of each side by side."""
    e, t = places
    before = np.maximum(t - 1, 0)  # of a first row, nothing is remembered anyhow
    rows = played.rows
    now = Step(*(getattr(rows, name)[e, t] for name in Step._fields))
    latent = jax.tree.map(lambda x: x[e, before], said.latent)
    env, zeros = jax.tree.map(lambda x: x[e, t], played.env), np.zeros(len(e), np.float32)
    player = dreamer.Player(env, now, latent, rows.a[e, before], zeros, zeros.astype(np.int32))
    return jax.tree.map(lambda x: x.repeat(copies, 0), player)
