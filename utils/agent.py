"""A trained agent, loaded from its run folder, for acting.

    from utils.agent import Agent
    agent = Agent("runs/CartPole-v1-0-20261121-165018")
    memory = agent.start()
    action, memory = agent.act(observation, memory)  # at each step of one episode
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

import dreamer
import gymnax_wrappers
from utils.core import cli
from utils.core import config as configuration
from utils.core.settings import Config
from utils.run import weights


class Memory(NamedTuple):
    """The agent's state between steps of an episode, for N parallel episodes."""

    latent: dreamer.Latent  # s_{t-1}
    a: jax.Array  # a_{t-1} [N, A]
    is_first: jax.Array  # [N] no step has been made yet
    key: jax.Array


class Agent:
    """The weights of a run's best evaluation, its environment and its configuration.

    `sets` override numbers of the run, each "section.key=value". `env` repeats the name of the
    run's environment if this is "module:factory": opening the run imports that module.

    Raises: ValueError, one line, for a folder without a run or weights, or with other weights."""

    def __init__(self, run, sets=(), env=None):
        cli.check_run(run)
        cli.check_own_code(run, env)
        path = Path(run) / "config.yaml"
        self.config = configuration.load(path, Config, sets=sets)
        self.env = gymnax_wrappers.configured(self.config.run)
        self.program, shapes = dreamer.build(self.config, self.env)
        self.params = weights.load(Path(run), shapes, configuration.load(path, Config))

    def start(self, batch=None, seed=0):
        """The initial Memory of an episode, or of `batch` parallel ones.

        `seed` determines the sampled actions: use a different one for each episode."""
        actor = jax.eval_shape(
            partial(dreamer.start_episodes, self.program, batch or 1), jax.random.key(seed))
        latent, a = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (actor.latent, actor.a))
        return Memory(latent, a, jnp.ones(batch or 1, bool), jax.random.key(seed))

    def act(self, observation, memory):
        """One step: the environment's raw observation -> its action, as a numpy array, and Memory

        Actions are sampled, as in training. Shapes: those of the environment; with a batch, both
        have a leading axis [N] (observations of Dict, Tuple ... are then a list of N).

        Raises: ValueError for an observation of another shape."""
        observation = self.env.array(observation)
        single = observation.ndim == len(self.env.raw_shape)
        x, episodes = observation[None] if single else observation, len(memory.is_first)
        if x.shape != (episodes, *self.env.raw_shape):
            raise ValueError(f"the observation has shape {list(observation.shape)}, expected "
                             f"{list(self.env.raw_shape)} for each of {episodes} episodes")
        actions, memory = _act(self.program, self.params, x, memory)
        return self.env.for_world(actions[0] if single else actions), memory


@partial(jax.jit, static_argnums=0)
def _act(program, params, x, memory):
    networks, env = dreamer.assemble(program, params), program.env
    key, act_key = jax.random.split(memory.key)
    no = jnp.zeros_like(memory.is_first)
    timestep = gymnax_wrappers.Step(
        jax.vmap(env.observation)(x), jnp.zeros(len(x)), memory.is_first, no, no)
    latent, a = dreamer.act(networks, timestep, memory.latent, memory.a, act_key)
    return jax.vmap(env.action)(a), Memory(latent, a, no, key)
