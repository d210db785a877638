"""Real episodes and imagined rollouts of a trained agent, as arrays for the report's figures.

Shapes: E environments of L rows each (the time line of dreamer.py), N starts, M imagined rollouts
from each, H steps.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dreamer
from gymnax_wrappers import Step
from utils.worlds.host import Worlds

ENVS, ROWS = 32, 512  # E and L of the played episodes
RANDOM_ACTIONS = 40  # maximum number at the start of episodes in the second half


class Played(NamedTuple):
    """Rows of E environments [E, L, ...]."""

    rows: dreamer.Transition
    env: Any  # the environments' states, to continue from
    t: jax.Array  # step in the episode
    is_random: jax.Array  # whether the action was random instead of the policy's


class Inferred(NamedTuple):
    """Posterior states of played rows, and the predictions of the heads; [E, L, ...]."""

    latent: dreamer.Latent
    r: jax.Array
    c: jax.Array  # probability that the world continues, without the discount
    values: jax.Array


class Rollouts(NamedTuple):
    """H imagined steps from N starts: means over M rollouts [N, H, ...].

    `alive` is the probability that the world has not ended so far, and `r` the reward times the
    probability that it is still paid. `rollouts` are the observations of the first start,
    [M, H, X]."""

    x: jax.Array
    r: jax.Array
    alive: jax.Array
    values: jax.Array
    rollouts: jax.Array


@partial(jax.jit, static_argnums=(0, 2))
def play(program, params, size, key):
    """Play consecutive episodes in E environments: size (E, L) -> Played

    In the first half of the environments only the policy acts; in the others each episode starts
    with 1 to RANDOM_ACTIONS random actions, so that failures and unusual states occur."""
    networks, (envs, length) = dreamer.assemble(program, params), size
    start_key, play_key = jax.random.split(key)
    start = dreamer.start_episodes(program, envs, start_key)
    _, played = jax.lax.scan(
        partial(_step, program, networks), start, jax.random.split(play_key, length))
    return dreamer.swap_time_and_batch(played)


def play_on_host(program, params, size, key):
    """`play` where the host steps the environments."""
    envs, length = size
    worlds, (start_key, play_key) = Worlds(program.env, envs, "the report"), jax.random.split(key)
    actor, played = dreamer.start_episodes(program, envs, start_key), []
    actor = worlds.begin(actor, start_key)
    for step_key in jax.random.split(play_key, length):
        actor, row = _one_step(program, params, actor, step_key)
        actor = worlds.carry_out(actor)
        played.append(jax.device_get(row))
    return jax.tree.map(lambda *rows: np.stack(rows, 1), *played)


@partial(jax.jit, static_argnums=0)
def _one_step(program, params, actor, key):
    return _step(program, dreamer.assemble(program, params), actor, key)


def _step(program, networks, actor, key):
    """One step of `play`: -> ActorState, Played [E]"""
    envs = len(actor.a)
    half = envs // 2
    random_steps = jnp.linspace(1, RANDOM_ACTIONS, envs - half).round()
    random_steps = jnp.concatenate([jnp.zeros(half), random_steps])
    act_key, random_key, env_key = jax.random.split(key, 3)
    timestep, t = actor.timestep, actor.length + ~actor.timestep.is_first
    latent, a = dreamer.act(networks, timestep, actor.latent, actor.a, act_key)
    random = _random_actions(program.env, random_key, envs)
    a = jnp.where((t < random_steps)[:, None], random, a)
    row = dreamer.transition(timestep, a, latent)
    env, after = jax.vmap(program.env.step)(jax.random.split(env_key, envs), actor.env, a)
    played = Played(row, actor.env, t, t < random_steps)
    actor = actor._replace(env=env, timestep=after, latent=latent, a=a,
                           length=t * ~timestep.is_last)
    return actor, played


def _random_actions(env, key, envs):
    if env.discrete:
        action = jax.random.randint(key, (envs,), 0, env.action_size)
        return jax.nn.one_hot(action, env.action_size)
    return jax.random.uniform(key, (envs, env.action_size), minval=-1.0, maxval=1.0)


@partial(jax.jit, static_argnums=0)
def infer(program, params, rows, key):
    """Posterior states and predictions of rows [E, L, ...] that start an episode: -> Inferred

    Images are encoded one row at a time: all of them as float32 may not fit into memory."""
    networks, model = dreamer.assemble(program, params), program.config.model
    envs, length = rows.r.shape

    def step(past, inputs):
        (x, is_first, a), key = inputs
        tokens = networks.world.encode(x)
        latent, _ = dreamer.observe_step(networks.world, *past, tokens, is_first, key)
        return (latent, a), latent

    start = dreamer.Latent(
        jnp.zeros((envs, model.deter)), jnp.zeros((envs, model.latents, model.classes)))
    inputs = dreamer.swap_time_and_batch((rows.x, rows.is_first, rows.a))
    keys = jax.random.split(key, length)
    _, latent = jax.lax.scan(step, (start, jnp.zeros_like(rows.a[:, 0])), (inputs, keys))
    latent = dreamer.swap_time_and_batch(latent)
    return Inferred(latent, *_heads(program, networks, latent))


def _heads(program, networks, latent):
    """Reward, continue probability (undiscounted) and value of states."""
    s, config = dreamer.features(latent), program.config
    bins, discount = dreamer.value_bins(config.model.bins), 1.0 - 1.0 / config.learning.horizon
    c = jax.nn.sigmoid(networks.world.continue_(s)[..., 0])
    return (dreamer.twohot_mean(networks.world.reward(s), bins), jnp.minimum(1.0, c / discount),
            dreamer.twohot_mean(networks.critic(s), bins))


@partial(jax.jit, static_argnums=(0, 4))
def imagine(program, params, start, actions, samples, keys):
    """M imagined rollouts from each of N states, one step per key: -> Rollouts

    With the given actions [N, H, A], or those of the policy if `actions` is None."""
    networks, n = dreamer.assemble(program, params), len(start.h)
    start, actions = jax.tree.map(lambda x: x.repeat(samples, 0), (start, actions))

    def step(carry, inputs):
        (latent, alive), (a, key) = carry, inputs
        action_key, latent_key = jax.random.split(key)
        a = networks.actor(dreamer.features(latent)).sample(action_key) if a is None else a
        latent = dreamer.imagine_step(networks.world, latent, a, latent_key)
        r, c, values = _heads(program, networks, latent)
        x = decoded(networks.world, latent)
        parts = (x.reshape(n, samples, *x.shape[1:]),
                 *(part.reshape(n, samples) for part in (alive * r, alive * c, values)))
        return (latent, alive * c), Rollouts(*(part.mean(1) for part in parts), parts[0][0])

    inputs = None if actions is None else actions.swapaxes(0, 1), keys
    _, imagined = jax.lax.scan(step, (start, jnp.ones(n * samples)), inputs)
    return dreamer.swap_time_and_batch(imagined)


def decoded(world, latent):
    """x̂ in the environment's units, or 0 to 255 for images: -> [..., X]"""
    x = world.decode(latent)
    return 255.0 * x if world.is_image else dreamer.symexp(x)


@partial(jax.jit, static_argnums=0)
def play_on(program, params, actor, keys):
    """Continue real episodes from an ActorState, one row per key: -> Transition [N, H + 1, ...]"""
    networks = dreamer.assemble(program, params)

    def step(actor, key):
        actor, row, _ = dreamer.play(program, networks, actor, key)
        return actor, row

    return dreamer.swap_time_and_batch(jax.lax.scan(step, actor, keys)[1])


def actor_at(played, inferred, places, copies):
    """The ActorState at the rows `places` (environment, row), each repeated `copies` times."""
    e, t = places
    before = np.maximum(t - 1, 0)  # first rows ignore the past anyway
    rows, zeros = played.rows, np.zeros(len(e), np.float32)
    actor = dreamer.ActorState(
        env=jax.tree.map(lambda x: x[e, t], played.env),
        timestep=Step(**{name: getattr(rows, name)[e, t] for name in Step._fields}),
        latent=jax.tree.map(lambda x: x[e, before], inferred.latent),
        a=rows.a[e, before], episode_return=zeros, length=zeros.astype(np.int32))
    return jax.tree.map(lambda x: x.repeat(copies, 0), actor)
