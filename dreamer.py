"""DreamerV3 in one file, to be read beside the paper.

Hafner, Pasukonis, Ba, Lillicrap: "Mastering diverse control tasks through world models", Nature
2025, arXiv 2301.04104v2. Equation numbers are those of arXiv v2.

    python dreamer.py --config dreamer.yaml --env CartPole-v1

The agent learns a world model from replayed experience (a recurrent state-space model, RSSM). From
every replayed state it imagines a rollout with that model, and it learns to act from these rollouts
alone.

Reading map, top to bottom: what flows through the program · robust predictions (Eq. 8-11) ·
networks (Eq. 1, 4) · world model learning (Eq. 1-3) · critic learning (Eq. 4-5) · actor learning
(Eq. 6-7) · one gradient step (Eq. 2) · acting · training. Networks that know nothing of
reinforcement learning are in jaxmodels_nnx.py, everything about Gymnax in gymnax_wrappers.py, the
hyperparameters in dreamer.yaml, replay, files and plots in utils/.

Notation (paper: code): x_t observation: `x` · a_t action, one-hot or vector: `a` · r_t: `r` ·
c_t continue: `c` · h_t recurrent state: `h` · z_t ~ posterior q, ẑ_t ~ prior p: `z` ·
s_t = (h_t, z_t), concatenated: `s` · R^λ_t: `returns` · v(s_t): `values` · S: `return_range` ·
γ = 1-1/`horizon`; λ, η: `lambda_`, `eta`. `params`: weights, `config`: numbers, `key`: randomness.

Shapes, the same letters everywhere: B sequences in a batch, T steps in a sequence, N = B·T imagined
rollouts, H steps of a rollout, E environments, C rows stored for each, D recurrent units, S latents
of K classes each, F = D + S·K features, A action entries, V value bins, X the observation's axes; a
round is k steps of each environment and U updates. Time is axis 1. (In the paper's equations, S is
also the return range, B the bins and H[·] an entropy.)

The time line. A row of the replay is what the agent knew and did at time t: x_t, r_t and the flags
arrived because of a_{t-1}; then a_t was chosen. With x_t = t, r_t = 100 + t (0 at a reset) and
a_t = 10 t, an episode that terminates at t = 3 and one that its time limit cuts at t = 2:

    row           0    1    2    3  |  4    5    6  |  7
    x             0    1    2    3  |  0    1    2  |  0
    r             0  101  102  103  |  0  101  102  |  0
    is_first      1    0    0    0  |  1    0    0  |  1
    is_last       0    0    0    1  |  0    0    1  |  0
    is_terminal   0    0    0    1  |  0    0    0  |  0
    a             0   10   20   (30)|  0   10   (20)|  0     (chosen, never carried out)

So h_t = f(h_{t-1}, z_{t-1}, a_{t-1}), where is_first replaces all three by zeros. The reward
and continue predicted from s_t are r_t and c_t, and what a_t earns stands at t + 1:
R_t = r_{t+1} + c_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1}). The discount γ = 1 - 1/horizon is part of the
continue target and appears nowhere else in an imagined rollout.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from utils.core import start, xla
from utils.hosts.join import GROUP, join

STARTED = time.perf_counter()  # before the heavy imports: the user waits for them too
if __name__ == "__main__":
    start.announce()
    join(sys.argv[1:])  # with other processes, before jax looks for devices
xla.start_jax()

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

import gymnax_wrappers
from jaxmodels_nnx import (
    MLP,
    BlockGRU,
    Categorical,
    Head,
    Linear,
    bounded_normal,
    make_decoder,
    make_encoder,
)
from utils.core import cli, devices, fast_forms
from utils.core import replay as replay_buffer
from utils.core.devices import DEVICES, Calls
from utils.core.references import REFERENCES
from utils.core.settings import Config, rounds_per_chunk, updates_per_steps
from utils.run.chunks import train_chunks
from utils.run.session import Session, check_saved
from utils.worlds import host_loop

# ---- What flows through the program --------------------------------------------------------------


class Latent(NamedTuple):
    """The model state s_t: recurrent h [..., D] and sampled one-hot z [..., S, K]."""

    h: jax.Array
    z: jax.Array


class Transition(NamedTuple):
    """One row of the replay (the time line above); stored [E, C, ...], sampled [B, T + 1, ...]."""

    x: jax.Array  # [..., X] observation, float32 or uint8
    r: jax.Array  # [...] reward
    is_first: jax.Array  # [...] first row of an episode
    is_last: jax.Array  # [...] last row of an episode, for whatever reason
    is_terminal: jax.Array  # [...] the world ended here; never true for a time limit
    a: jax.Array  # [..., A] action chosen here
    h: jax.Array  # [..., D] recurrent state, from the last time that this row was observed
    z: jax.Array  # [..., S] class of each latent, uint8


class Imagined(NamedTuple):
    """Imagined rollouts from N states: features s [N, H+1, F] and actions a [N, H, A]."""

    s: jax.Array
    a: jax.Array


class AgentState(NamedTuple):
    """All that learning changes."""

    params: Any  # weights of the networks
    slow_critic: Any  # weights of the slow critic
    average: Any  # running average of the weights: those that are evaluated and kept
    opt_state: Any
    return_range: jax.Array  # [2] running low and high percentile of the returns
    step: jax.Array  # updates done


class EpisodeStats(NamedTuple):
    """Episodes that ended at a row: whether one did, its return, its number of actions; [E]."""

    is_last: jax.Array
    episode_return: jax.Array
    length: jax.Array


class ActorState(NamedTuple):
    """E environments in the middle of their episodes, and what the agent remembers of them."""

    env: Any  # environment states [E, ...]
    timestep: gymnax_wrappers.Step  # what has just arrived [E, ...]
    latent: Latent  # s_{t-1}
    a: jax.Array  # a_{t-1} [E, A]
    episode_return: jax.Array  # return of the running episode so far [E]
    length: jax.Array  # its number of actions so far [E]


class RunnerState(NamedTuple):
    """Everything that a compiled chunk of training takes and returns."""

    agent: AgentState
    replay: replay_buffer.Replay
    actor: ActorState
    key: jax.Array


@dataclass(frozen=True, eq=False)
class Program:
    """What is fixed while the program runs: a static argument of every compiled function."""

    config: Config
    env: gymnax_wrappers.Environment
    networks: nnx.GraphDef
    critic: nnx.GraphDef
    optimizer: optax.GradientTransformation
    updates: int  # of the whole run
    groups: int = 1  # of devices, each of which trains seeds of its own


# ---- Robust predictions (Eq. 8-11) ---------------------------------------------------------------


def symlog(x):
    """Eq. 9 | symlog(x) = sign(x) ln(|x| + 1), of any shape"""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x):
    """Eq. 9 | symexp(x) = sign(x) (exp|x| - 1), its inverse, of any shape"""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def value_bins(n):
    """Eq. 10 | the bins B = symexp(-20 ... 20), n of them, exactly antisymmetric

    Shapes: -> [V]; n is odd, so the middle bin is 0."""
    with jax.ensure_compile_time_eval():  # a constant: else XLA computes it again for every logit
        half = symexp(jnp.linspace(-20.0, 0.0, n // 2 + 1))
        return jnp.concatenate([half, -half[:-1][::-1]])


def twohot_mean(logits, bins):
    """Eq. 10 | ŷ = softmax(logits)ᵀ B, as Σ (p(b) - p(-b)) b over the positive bins b

    Zero logits then give exactly 0, whatever the compiler does with products and sums.

    Shapes: logits [..., V], bins [V], antisymmetric -> [...]."""
    probs, middle = jax.nn.softmax(logits), bins.shape[0] // 2
    surplus = probs[..., middle + 1 :] - probs[..., :middle][..., ::-1]
    return jnp.sum(surplus * bins[middle + 1 :], -1)


def twohot_loss(logits, target, bins):
    """Eq. 11 | -twohot(y)ᵀ ln softmax(logits), y interpolated between the bins around it

    Targets outside the bins are clipped to the end bin. No [..., V] target is ever built.

    Shapes: logits [..., V], target [...], bins [V] -> [...]."""
    target = jnp.clip(target, bins[0], bins[-1])
    below = fast_forms.count_at_most(bins, target) - 1
    below = jnp.clip(below, 0, bins.shape[0] - 2)
    share = (target - bins[below]) / (bins[below + 1] - bins[below])
    two = jnp.take_along_axis(logits, jnp.stack([below, below + 1], -1), -1)
    picked = (1.0 - share) * two[..., 0] + share * two[..., 1]
    return jax.nn.logsumexp(logits, -1) - picked


def unimix(logits, ratio):
    """Probabilities (1 - ratio) softmax(logits) + ratio uniform: no class reaches probability 0

    Shapes: logits [..., K] -> [..., K].
    Source: paper, section "World model learning", 1% unimix."""
    return (1.0 - ratio) * jax.nn.softmax(logits) + ratio / logits.shape[-1]


def sample_onehot(key, probs):
    """z ~ Categorical(probs) as one-hot, with the straight-through gradient of probs

    By inverse CDF, with one uniform number per draw. Shapes: probs [..., K] -> [..., K]."""
    uniform = jax.random.uniform(key, probs.shape[:-1])
    bounds = jnp.cumsum(jax.lax.stop_gradient(probs), -1)[..., :-1]
    onehot = jax.nn.one_hot(jnp.sum(uniform[..., None] >= bounds, -1), probs.shape[-1])
    return onehot + (probs - jax.lax.stop_gradient(probs))  # the value of the bracket is 0


def kl(p, q):
    """KL(p ‖ q) = Σ_k p_k (ln p_k - ln q_k) in nats, of probabilities [..., K] -> [...]"""
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)), -1)


def entropy(p):
    """H[p] = -Σ_k p_k ln p_k in nats, of probabilities [..., K] -> [...]"""
    return -jnp.sum(p * jnp.log(p), -1)


# ---- Networks (Eq. 1, Eq. 4) ---------------------------------------------------------------------


def features(latent):
    """s = [h, z flat], the input of every head: h [..., D], z [..., S, K] -> [..., F]"""
    return jnp.concatenate([latent.h, latent.z.reshape(*latent.z.shape[:-2], -1)], -1)


def latent_classes(latent):
    """The number of the class of each latent, as the replay stores z: [..., S, K] -> [..., S]"""
    return jnp.argmax(latent.z, -1).astype(jnp.uint8)


class WorldModel(nnx.Module):
    """Eq. 1 | sequence model, encoder (posterior), dynamics (prior), reward, continue, decoder"""

    def __init__(self, model, env, rngs):
        self.model, self.is_image = model, env.is_image
        units, eps = model.units, model.norm_eps
        z_size, s_size = model.z_size, model.s_size
        self.encoder, tokens = make_encoder(model, env.x_shape, env.is_image, rngs)
        sizes = (model.deter, z_size, env.action_size)
        self.sequence = BlockGRU(sizes, model.hidden, model.blocks, eps, rngs)
        posterior = MLP(model.deter + tokens, model.hidden, model.posterior_layers, eps, rngs)
        self.posterior = Head(posterior, model.hidden, z_size, rngs)
        prior = MLP(model.deter, model.hidden, model.prior_layers, eps, rngs)
        self.prior = Head(prior, model.hidden, z_size, rngs)
        self.decoder = make_decoder(model, env.x_shape, env.is_image, rngs)
        reward = MLP(s_size, units, model.reward_layers, eps, rngs)
        self.reward = Head(reward, units, model.bins, rngs, outscale=0.0)
        self.continue_ = Head(MLP(s_size, units, model.continue_layers, eps, rngs), units, 1, rngs)

    def encode(self, x):
        """Embedding ("tokens") of x: of symlog(x) or pixels in [-0.5, 0.5], [..., X] -> [..., ·]"""
        return self.encoder(x / 255.0 - 0.5 if self.is_image else symlog(x))

    def decode(self, latent):
        """x̂ [..., X]: a vector in symlog space, or an image in (0, 1)"""
        return self.decoder(latent.h, latent.z.reshape(*latent.z.shape[:-2], -1))

    def sequence_step(self, latent, a):
        """Eq. 1 | h_t = f(h_{t-1}, z_{t-1}, a_{t-1}), actions beyond ±1 scaled back to ±1

        Shapes: latent [N, D], [N, S, K]; a [N, A] -> [N, D]."""
        a = a / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(a)))
        return self.sequence(latent.h, latent.z.reshape(len(latent.z), -1), a)

    def posterior_probs(self, h, tokens):
        """Eq. 1 | q(z_t | h_t, x_t) with unimix: h [..., D], tokens -> [..., S, K]"""
        return self._probs(self.posterior(jnp.concatenate([h, tokens], -1)))

    def prior_probs(self, h):
        """Eq. 1 | p(ẑ_t | h_t) with unimix: h [..., D] -> [..., S, K]"""
        return self._probs(self.prior(h))

    def _probs(self, logits):
        shape = (*logits.shape[:-1], self.model.latents, self.model.classes)
        return unimix(logits.reshape(shape), self.model.unimix)


class Actor(nnx.Module):
    """Eq. 4 | a_t ~ π(a_t | s_t): s [..., F] -> Categorical or BoundedNormal over [..., A]"""

    def __init__(self, model, env, rngs):
        self.model, self.discrete = model, env.discrete
        self.mlp = MLP(model.s_size, model.units, model.actor_layers, model.norm_eps, rngs)
        self.out = Linear(model.units, env.action_size, rngs, model.actor_scale)
        if not env.discrete:
            self.out_std = Linear(model.units, env.action_size, rngs, model.actor_scale)

    def __call__(self, s):
        x = self.mlp(s)
        if self.discrete:
            return Categorical(self.out(x).astype(jnp.float32))
        return bounded_normal(self.out(x), self.out_std(x), self.model)


class Critic(Head):
    """Eq. 4 | v_t ~ v(· | s_t): s [..., F] -> logits over the value bins [..., V]"""

    def __init__(self, model, rngs):
        mlp = MLP(model.s_size, model.units, model.critic_layers, model.norm_eps, rngs)
        super().__init__(mlp, model.units, model.bins, rngs, outscale=0.0)


class Networks(nnx.Module):
    """All networks of the agent: world model, actor and critic"""

    def __init__(self, model, env, rngs):
        self.world = WorldModel(model, env, rngs)
        self.actor = Actor(model, env, rngs)
        self.critic = Critic(model, rngs)


class Frozen(NamedTuple):
    """Networks that are evaluated without a gradient."""

    networks: Networks
    slow_critic: Critic

    def predict(self, s, bins):
        """Rewards, continues and the slow critic's values of states: s [..., F] -> [...] each"""
        world = self.networks.world
        r = twohot_mean(world.reward(s), bins)
        c = jax.nn.sigmoid(world.continue_(s)[..., 0])
        return r, c, twohot_mean(self.slow_critic(s), bins)


def assemble(program, params):
    """The Networks with these weights, in the forms of utils/core/fast_forms.py

    Call it outside of the loop that uses them: weights are rearranged or rounded here."""
    networks = nnx.merge(program.networks, params)
    return fast_forms.swap_in(networks, program.config.model.compute_dtype)


def freeze(program, params, slow_critic):
    """The same networks and the slow critic, without a gradient: -> Frozen

    On a CPU its counterpart StepByStep, with the same `predict`, `networks`, `slow_critic`."""
    networks = assemble(program, jax.lax.stop_gradient(params))
    frozen = Frozen(networks=networks, slow_critic=nnx.merge(program.critic, slow_critic))
    return fast_forms.swap_in_frozen(frozen, program.config.model.compute_dtype)


def swap_time_and_batch(tree):
    """Swaps axes 0 and 1 of every array: `jax.lax.scan` runs over axis 0, time is our axis 1."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


# ---- World model learning (Eq. 1-3) --------------------------------------------------------------


def observe_step(world, latent, a, tokens, is_first, key):
    """Eq. 1 | s_{t-1}, a_{t-1}, x_t -> s_t ~ q: one step of the RSSM on real data

    Where is_first is true, the past is zeroed first.

    Shapes: latent [B, D], [B, S, K]; a [B, A]; tokens [B, ·]; is_first [B]
    -> Latent, posterior probabilities [B, S, K]."""
    keep = 1.0 - is_first.astype(jnp.float32)
    past = Latent(latent.h * keep[:, None], latent.z * keep[:, None, None])
    h = world.sequence_step(past, a * keep[:, None])
    probs = world.posterior_probs(h, tokens)
    return Latent(h, sample_onehot(key, probs)), probs


def imagine_step(world, latent, a, key):
    """Eq. 1 | s_t, a_t -> s_{t+1} ~ p: one step of the RSSM without data

    Shapes: latent [N, D], [N, S, K]; a [N, A] -> Latent."""
    h = world.sequence_step(latent, a)
    return Latent(h, sample_onehot(key, world.prior_probs(h)))


def observe(world, start, batch, key):
    """Eq. 1 | posterior states s_1 ... s_T of replayed sequences; row 0 gives the state before

    The one place where actions are shifted: row t meets a_{t-1}.

    Shapes: start is s_0 ([B, D], [B, S, K]), batch [B, T + 1, ...]
    -> Latent [B, T, ...], posterior probabilities [B, T, S, K]."""
    tokens = world.encode(batch.x[:, 1:])

    def step(latent, inputs):
        latent, probs = observe_step(world, latent, *inputs)
        return latent, (latent, probs)

    inputs = swap_time_and_batch((batch.a[:, :-1], tokens, batch.is_first[:, 1:]))
    keys = jax.random.split(key, tokens.shape[1])
    _, outputs = fast_forms.scan(step, start, (*inputs, keys))
    return swap_time_and_batch(outputs)


def decoder_loss(world, latent, x):
    """Eq. 3, 8 | -ln p(x_t | s_t): squared error, in symlog space for vectors, summed over x

    Shapes: latent [B, T, ...], x [B, T, X] -> [B, T].
    Differs: Eq. 8 has a factor ½; the official code has none either."""
    if world.is_image:
        return jnp.sum(jnp.square(world.decode(latent) - x / 255.0), (-3, -2, -1))
    return jnp.sum(jnp.square(world.decode(latent) - symlog(x)), -1)


def continue_loss(logit, is_terminal, horizon):
    """Eq. 3 | -ln p(c_t | s_t), cross entropy with the soft target (1 - is_terminal)(1 - 1/horizon)

    Shapes: logit, is_terminal [...] -> [...]."""
    target = (1.0 - is_terminal) * (1.0 - 1.0 / horizon)
    return optax.sigmoid_binary_cross_entropy(logit, target)


def prediction_loss(world, latent, rows, learning):
    """Eq. 3 | L_pred = -ln p(x_t | s_t) - ln p(r_t | s_t) - ln p(c_t | s_t)

    Shapes: latent, rows [B, T, ...] -> its three terms by name, [B, T] each."""
    s, bins = features(latent), value_bins(world.model.bins)
    logit = world.continue_(s)[..., 0]
    return {
        "decoder": decoder_loss(world, latent, rows.x),
        "reward": twohot_loss(world.reward(s), rows.r, bins),
        "continue": continue_loss(logit, rows.is_terminal, learning.horizon),
    }


def dynamics_loss(posterior, prior, free_bits):
    """Eq. 3 | L_dyn = max(free bits, KL(sg(q) ‖ p)): the prior learns to predict the posterior

    Shapes: posterior, prior [..., S, K] -> [...]; the KL is summed over S before the maximum."""
    return jnp.maximum(free_bits, kl(jax.lax.stop_gradient(posterior), prior).sum(-1))


def representation_loss(posterior, prior, free_bits):
    """Eq. 3 | L_rep = max(free bits, KL(q ‖ sg(p))): the posterior becomes easier to predict

    Shapes: posterior, prior [..., S, K] -> [...]."""
    return jnp.maximum(free_bits, kl(posterior, jax.lax.stop_gradient(prior)).sum(-1))


# ---- Critic learning (Eq. 4-5) -------------------------------------------------------------------


def imagine(networks, start, steps, key):
    """Eq. 4 | imagined rollouts: a_t ~ π(s_t), h_{t+1} = f(s_t, a_t), z_{t+1} ~ p(h_{t+1})

    Shapes: start is N states, steps is H -> Imagined with s [N, H+1, F], a [N, H, A]."""
    def step(latent, step_key):
        action_key, latent_key = jax.random.split(step_key)
        s = features(latent)
        a = networks.actor(s).sample(action_key)
        return imagine_step(networks.world, latent, a, latent_key), (s, a)

    last, (s, a) = fast_forms.scan(step, start, jax.random.split(key, steps))
    s, a = swap_time_and_batch((s, a))
    return Imagined(s=jnp.concatenate([s, features(last)[:, None]], 1), a=a)


def lambda_returns(r, c, values, lambda_):
    """Eq. 5 | R_t = r_{t+1} + c_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1}), t = 0 ... H-1, R_H = v_H

    Shapes: r, c, values [N, H+1], each at the state that it was predicted from; lambda_ a number
    or [N, H+1] likewise -> [N, H].
    Differs: the paper writes r_t, c_t and v_t in Eq. 5; here all three are at t + 1 (the time
    line), and the paper's γ is part of c."""
    def step(return_after, inputs):
        r, c, v, lambda_ = inputs
        return_here = r + c * ((1.0 - lambda_) * v + lambda_ * return_after)
        return return_here, return_here

    lambda_ = jnp.broadcast_to(lambda_, r.shape)
    inputs = swap_time_and_batch((r[:, 1:], c[:, 1:], values[:, 1:], lambda_[:, 1:]))
    _, returns = fast_forms.scan(step, values[:, -1], inputs, reverse=True)
    return swap_time_and_batch(returns)


def trajectory_weights(c):
    """Π_{i≤t} c_i, the discounted probability that a rollout gets to state t: [N, H+1]"""
    return jnp.cumprod(c, 1)


def critic_loss(logits, returns, slow_values, bins, slow_scale):
    """Eq. 5 | -ln p(R_t | s_t), and towards the slow critic's prediction

    Shapes: logits [..., V]; returns, slow_values [...] -> [...]."""
    to_returns = twohot_loss(logits, jax.lax.stop_gradient(returns), bins)
    to_slow = twohot_loss(logits, jax.lax.stop_gradient(slow_values), bins)
    return to_returns + slow_scale * to_slow


def replay_returns(rows, bootstrap, learning):
    """λ-returns of real rewards, t = 0 ... T-2; where an episode ends, they restart from bootstrap

    Shapes: rows, bootstrap [B, T] -> [B, T-1]; bootstrap is the imagined return of each row.
    Source: official code, `repl_loss`; golden file 4b_repl_loss."""
    c = (1.0 - rows.is_terminal) * (1.0 - 1.0 / learning.horizon)
    lambda_ = (1.0 - rows.is_last) * learning.lambda_
    return lambda_returns(rows.r, c, bootstrap, lambda_)


# ---- Actor learning (Eq. 6-7) --------------------------------------------------------------------


def update_return_range(return_range, returns, learning):
    """Eq. 7 | S = EMA(Per(R, 95) - Per(R, 5)): both percentiles averaged, each from 0 on

    Shapes: return_range [2], returns any -> [2]."""
    levels = jnp.array([learning.return_low, learning.return_high])
    new = jnp.percentile(returns, levels)
    return (1.0 - learning.return_rate) * return_range + learning.return_rate * new


def advantages(returns, values, return_range, limit):
    """Eq. 6 | (R_t - v(s_t)) / max(L, S): returns, values [N, H], return_range [2] -> [N, H]"""
    return (returns - values) / jnp.maximum(limit, return_range[1] - return_range[0])


def entropy_scale(return_range, done, learning):
    """η = eta · max(f, f^done · min(1, S / L)), where f is `eta_final`: 1 gives the paper's eta

    It falls from eta to f · eta over a run of which a share `done` is over, and at once where
    returns differ less than L. Shapes: return_range [2], done [] -> []."""
    small = jnp.minimum(1.0, (return_range[1] - return_range[0]) / learning.return_limit)
    final = learning.eta_final
    return learning.eta * jnp.maximum(final, final**done * small)


def actor_loss(policy, a, advantage, eta):
    """Eq. 6 | -(sg(advantage) ln π(a_t | s_t) + η H[π(a_t | s_t)])

    Shapes: policy over a [N, H, A], advantage [N, H] -> [N, H]."""
    reinforce = jax.lax.stop_gradient(advantage) * policy.log_prob(a)
    return -(reinforce + eta * policy.entropy())


# ---- One gradient step (Eq. 2) -------------------------------------------------------------------


class Aux(NamedTuple):
    """What `agent_losses` returns beside the losses."""

    return_range: jax.Array
    latent: Latent  # fresh posterior states [B, T, ...], for the replay
    metrics: dict


def world_losses(networks, batch, key, config):
    """Eq. 3 | the three losses of the world model on a batch [B, T + 1, ...]

    -> dict of scalars, posterior states [B, T, ...], metrics."""
    world, learning, model = networks.world, config.learning, config.model
    start = Latent(batch.h[:, 0], jax.nn.one_hot(batch.z[:, 0], model.classes))
    latent, posterior = observe(world, start, batch, key)
    prior = world.prior_probs(latent.h)
    terms = prediction_loss(world, latent, jax.tree.map(lambda x: x[:, 1:], batch), learning)
    losses = {
        "prediction": sum(terms.values()).mean(),
        "dynamics": dynamics_loss(posterior, prior, learning.free_bits).mean(),
        "representation": representation_loss(posterior, prior, learning.free_bits).mean(),
    }
    metrics = {f"losses/{name}": term.mean() for name, term in terms.items()}
    metrics["latents/posterior_entropy"] = entropy(posterior).sum(-1).mean()
    metrics["latents/prior_entropy"] = entropy(prior).sum(-1).mean()
    return losses, latent, metrics


def imagination_losses(networks, frozen, imagined, return_range, done, config):
    """Eq. 5-7 | critic and actor losses on imagined rollouts; no other network gets a gradient

    -> dict of scalars, λ-returns [N, H] and the new return range [2], metrics."""
    learning, bins = config.learning, value_bins(config.model.bins)
    s, last = imagined.s[:, :-1], imagined.s[:, -1]  # the last state has no action and no loss
    r, c, slow_values = frozen.predict(imagined.s, bins)
    logits, policy = networks.critic(s), networks.actor(s)
    values = jax.lax.stop_gradient(twohot_mean(logits, bins))
    last_value = twohot_mean(frozen.networks.critic(last), bins)
    values = jnp.concatenate([values, last_value[:, None]], 1)
    returns = lambda_returns(r, c, values, learning.lambda_)
    returns_of_all = jax.lax.all_gather(devices.sample_of(returns), DEVICES)
    return_range = update_return_range(return_range, returns_of_all, learning)
    advantage = advantages(returns, values[:, :-1], return_range, learning.return_limit)

    weight = trajectory_weights(c)[:, :-1]
    critic = critic_loss(logits, returns, slow_values[:, :-1], bins, learning.slow_scale)
    eta = entropy_scale(return_range, done, learning)
    actor = actor_loss(policy, imagined.a, advantage, eta)
    losses = {"critic": (weight * critic).mean(), "actor": (weight * actor).mean()}
    metrics = {
        "imagination/return": returns.mean(),
        "imagination/reward": r[:, 1:].mean(),
        "imagination/continue": c[:, 1:].mean(),
        "imagination/value": values.mean(),
        "actor/entropy": policy.entropy().mean(),
        "actor/eta": eta,
        "actor/advantage_std": advantage.std(),
        "actor/return_low": return_range[0],
        "actor/return_high": return_range[1],
    }
    return losses, (returns, return_range), metrics


def replay_critic_loss(networks, frozen, latent, rows, bootstrap, config):
    """The critic on real rewards, t = 0 ... T-2; its gradient reaches the world model through s

    Rows that end an episode have no return and count as zero.

    Shapes: latent, rows, bootstrap [B, T, ...] -> scalar.
    Source: paper, section "Critic learning", β_repval; golden file 4b_repl_loss."""
    learning, bins = config.learning, value_bins(config.model.bins)
    s = features(latent)[:, :-1]
    slow_values = twohot_mean(frozen.slow_critic(jax.lax.stop_gradient(s)), bins)
    returns = replay_returns(rows, bootstrap, learning)
    loss = critic_loss(networks.critic(s), returns, slow_values, bins, learning.slow_scale)
    return jnp.mean((1.0 - rows.is_last[:, :-1]) * loss)


def agent_losses(program, params, state, batch, key):
    """Eq. 2, 4 | every loss on one batch [B, T + 1, ...]: -> dict of scalars, Aux"""
    config = program.config
    observe_key, imagine_key = jax.random.split(key)
    networks = assemble(program, params)
    frozen = freeze(program, params, state.slow_critic)

    losses, latent, metrics = world_losses(networks, batch, observe_key, config)

    start = jax.lax.stop_gradient(latent)  # a rollout starts from every replayed state
    start = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), start)
    imagined = imagine(frozen.networks, start, config.learning.imagination, imagine_key)
    behaviour, (returns, return_range), more = imagination_losses(
        networks, frozen, imagined, state.return_range, state.step / program.updates, config)

    rows = jax.tree.map(lambda x: x[:, 1:], batch)
    bootstrap = returns[:, 0].reshape(rows.r.shape)
    replay = replay_critic_loss(networks, frozen, latent, rows, bootstrap, config)

    losses = losses | behaviour | {"replay_critic": replay}
    metrics |= more | {f"losses/{name}": loss for name, loss in losses.items()}
    latent = jax.lax.stop_gradient(latent)
    return losses, Aux(return_range=return_range, latent=latent, metrics=metrics)


def total_loss(params, program, state, batch, key):
    """Eq. 2 | Σ β · L over all losses: -> scalar, Aux"""
    losses, aux = agent_losses(program, params, state, batch, key)
    learning = program.config.learning
    scales = {
        "prediction": learning.beta_pred,
        "dynamics": learning.beta_dyn,
        "representation": learning.beta_rep,
        "actor": learning.beta_actor,
        "critic": learning.beta_critic,
        "replay_critic": learning.beta_replay,
    }
    assert losses.keys() == scales.keys(), (losses.keys(), scales.keys())
    return sum(scales[name] * losses[name] for name in scales), aux


def adaptive_gradient_clipping(limit, floor):
    """AGC: scale a tensor's gradient down to ‖g‖ ≤ limit · max(floor, ‖w‖)

    Source: Brock et al. 2021, one norm per whole tensor as in the official code (golden file
    6_optimizer).
    Differs: `optax.adaptive_grad_clip` takes one norm per output unit."""
    return optax.stateless(partial(_clip, limit, floor))


def _clip(limit, floor, grads, weights):
    tensors, tree = jax.tree.flatten(grads)
    allowed = limit * jnp.maximum(floor, fast_forms.norms(jax.tree.leaves(weights)))
    excess = jnp.maximum(1.0, fast_forms.norms(tensors) / allowed)
    return jax.tree.unflatten(tree, [grad / more for grad, more in zip(tensors, excess)])


def learning_rate(peak, warmup, final, updates):
    """Linear warm-up from 0 to `peak` over `warmup` updates, then linear to final · peak

    `final` 1 keeps the rate constant, as the paper does. `updates` are those of the whole run."""
    rise = optax.linear_schedule(0.0, peak, warmup)
    fall = optax.linear_schedule(peak, final * peak, max(1, updates - warmup))
    return optax.join_schedules([rise, fall], [warmup])


def laprop(config, updates):
    """AGC, then LaProp: division by the root mean square, then momentum, then the learning rate

    Source: Ziyin et al. 2020; table of hyperparameters in the paper, golden file 6_optimizer."""
    rate = learning_rate(config.lr, config.warmup, config.lr_final, updates)
    step = optax.chain(
        optax.scale_by_rms(config.rms_decay, config.eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(config.momentum, debias=True),
        optax.scale_by_learning_rate(rate),
    )
    # Flat: XLA compiles and runs a few operations on one long vector faster than on 70 tensors.
    clip = adaptive_gradient_clipping(config.agc, config.agc_floor)
    return optax.chain(clip, optax.flatten(step))


def train_step(program, state, batch, key):
    """One gradient step on all networks, on one batch [B, T + 1, ...]

    -> AgentState, Latent, metrics."""
    grads, aux = jax.grad(total_loss, has_aux=True)(state.params, program, state, batch, key)
    grads = devices.mean(grads, program.config.optimizer.mean_dtype)
    updates, opt_state = program.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    rate = program.config.learning.slow_rate
    slow_critic = optax.incremental_update(params["critic"], state.slow_critic, rate)
    step = state.step + 1
    share = 1.0 / jnp.maximum(1.0, program.config.optimizer.average * step)
    average = optax.incremental_update(params, state.average, share)
    norms = fast_forms.norms(jax.tree.leaves(grads))
    metrics = aux.metrics | {"optimizer/grad_norm": jnp.linalg.norm(norms)}
    state = AgentState(params=params, slow_critic=slow_critic, average=average,
                       opt_state=opt_state, return_range=aux.return_range, step=step)
    return state, aux.latent, metrics


# ---- Acting --------------------------------------------------------------------------------------


def act(networks, timestep, latent, a, key):
    """s_t ~ q(s_{t-1}, a_{t-1}, x_t), a_t ~ π(s_t), for E environments

    Shapes: timestep is a Step [E, ...]; latent and a [E, A] of the step before
    -> Latent, a [E, A]."""
    latent_key, action_key = jax.random.split(key)
    world, tokens = networks.world, networks.world.encode(timestep.x)
    latent, _ = observe_step(world, latent, a, tokens, timestep.is_first, latent_key)
    return latent, networks.actor(features(latent)).sample(action_key)


def start_episodes(program, envs, key):
    """`envs` environments just reset, with nothing remembered: -> ActorState"""
    model = program.config.model
    env, timestep = jax.vmap(program.env.reset)(jax.random.split(key, envs))
    return ActorState(
        env=env, timestep=timestep,
        latent=Latent(jnp.zeros((envs, model.deter)),
                      jnp.zeros((envs, model.latents, model.classes))),
        a=jnp.zeros((envs, program.env.action_size)),
        episode_return=jnp.zeros(envs), length=jnp.zeros(envs, jnp.int32))


def transition(timestep, a, latent):
    """The row that a step leaves in the replay; latents are stored as the numbers of their classes

    Shapes: timestep is a Step [E, ...], a [E, A] -> Transition [E, ...]."""
    return Transition(x=timestep.x, r=timestep.r, is_first=timestep.is_first,
                      is_last=timestep.is_last, is_terminal=timestep.is_terminal,
                      a=a, h=latent.h, z=latent_classes(latent))


def play(program, networks, actor, key):
    """One step of E environments: -> ActorState after it, Transition [E], EpisodeStats [E]"""
    act_key, env_key = jax.random.split(key)
    timestep = actor.timestep
    latent, a = act(networks, timestep, actor.latent, actor.a, act_key)
    episode_return = actor.episode_return + timestep.r
    length = actor.length + ~timestep.is_first  # a reset row is no action
    stats = EpisodeStats(is_last=timestep.is_last, episode_return=episode_return, length=length)
    # After the last row of an episode, env.step ignores a and returns the next one's first row.
    env_keys = jax.random.split(env_key, len(a))
    env, after = jax.vmap(program.env.step)(env_keys, actor.env, a)
    continues = ~timestep.is_last
    actor = ActorState(env=env, timestep=after, latent=latent, a=a,
                       episode_return=episode_return * continues, length=length * continues)
    return actor, transition(timestep, a, latent), stats


def rollout(program, state, steps):
    """Play `steps` steps of E environments into the replay: -> RunnerState, EpisodeStats"""
    networks = assemble(program, state.agent.params)
    key, play_key = jax.random.split(state.key)

    def step(carry, step_key):
        actor, replay = carry
        actor, row, stats = play(program, networks, actor, step_key)
        return (actor, replay_buffer.write(replay, row)), stats

    keys = jax.random.split(play_key, steps)
    (actor, replay), stats = jax.lax.scan(step, (state.actor, state.replay), keys)
    return state._replace(actor=actor, replay=replay, key=key), stats


# ---- Training ------------------------------------------------------------------------------------


def update(program, state):
    """One batch from the replay, one update, fresh latents back: -> RunnerState, metrics"""
    config = program.config.replay
    key, sample_key, train_key = jax.random.split(state.key, 3)
    batch, index = replay_buffer.sample(
        state.replay, sample_key, config.batch, config.length + 1, config.recent)
    agent, latent, metrics = train_step(program, state.agent, batch, train_key)
    fresh = {"h": latent.h, "z": latent_classes(latent)}
    trained = index._replace(place=index.place[:, 1:])  # row 0 only gave the state before
    replay = replay_buffer.refresh(state.replay, trained, fresh)
    return state._replace(agent=agent, replay=replay, key=key), metrics


def train_rounds(program, state, rounds):
    """`rounds` times k environment steps and U updates, on one device

    -> RunnerState, EpisodeStats [rounds, k, E], metrics [rounds, U]."""
    updates, steps = updates_per_steps(program.config)

    def one_update(state, _):
        return update(program, state)

    def one_round(state, _):
        state, stats = rollout(program, state, steps)
        state, metrics = jax.lax.scan(one_update, state, length=updates)
        return state, (stats, metrics)

    state, (stats, metrics) = jax.lax.scan(one_round, state, length=rounds)
    return state, stats, metrics


def on_all_devices(function, program, state, number):
    """function(program, state, number) on each device, with its part of environments and batch

    Weights stay the same on all: gradients are means over all devices, percentiles of all returns.
    -> RunnerState, arrays [., ., E] of all environments, metrics (means over the devices)."""
    spec = devices.layout(state)

    def on_one(state):
        own = state._replace(key=jax.random.fold_in(state.key, jax.lax.axis_index(DEVICES)))
        after, stats, metrics = function(devices.part(program), own, number)
        key = jax.random.fold_in(state.key, jax.lax.axis_size(DEVICES))  # again the same on all
        stats = jax.lax.all_gather(stats, DEVICES, axis=2, tiled=True)
        return after._replace(key=key), stats, devices.mean(metrics)

    return jax.shard_map(on_one, mesh=devices.mesh(program.config, program.groups),
                         in_specs=(spec,), out_specs=(spec, P(), P()), check_vma=False)(state)


@partial(jax.jit, static_argnums=(0, 2), donate_argnums=1)
def train_chunk(program, state, rounds):
    """`train_rounds` on all devices: -> RunnerState, EpisodeStats [rounds, k, E], metrics"""
    return on_all_devices(train_rounds, program, state, rounds)


prefill = jax.jit(rollout, static_argnums=(0, 2), donate_argnums=1)  # by the untrained policy


@partial(jax.jit, static_argnums=0)
def evaluate(program, params, key):
    """Returns and lengths [episodes] of fresh episodes; actions are sampled, as in training

    An episode that run.eval_limit cuts counts as far as it got."""
    run, networks = program.config.run, assemble(program, params)
    start_key, play_key = jax.random.split(key)
    actor = start_episodes(program, run.eval_episodes, start_key)
    no = jnp.zeros(run.eval_episodes, bool)
    first = EpisodeStats(is_last=no, episode_return=actor.episode_return, length=actor.length)

    def unfinished(carry):
        _, done, t = carry
        return ~done.is_last.all() & (t < run.eval_limit)

    def step(carry):
        actor, done, t = carry
        actor, _, stats = play(program, networks, actor, jax.random.fold_in(play_key, t))
        done = jax.tree.map(lambda old, new: jnp.where(done.is_last, old, new), done, stats)
        return actor, done, t + 1

    _, done, _ = jax.lax.while_loop(unfinished, step, (actor, first, 0))
    return done.episode_return, done.length


def build(config, env):
    """The Program, and the shapes of all weights (nothing is allocated)"""
    model = config.model
    networks, shapes = nnx.split(nnx.eval_shape(lambda: Networks(model, env, nnx.Rngs(0))))
    critic, _ = nnx.split(nnx.merge(networks, shapes).critic)
    rows = (config.run.steps - config.run.prefill) * config.run.train_ratio
    updates = round(rows / (config.replay.batch * config.replay.length))
    program = Program(config=config, env=env, networks=networks, critic=critic,
                      optimizer=laprop(config.optimizer, updates), updates=updates)
    return program, shapes


@partial(jax.jit, static_argnums=0)
def init(program, key):
    """Weights, optimiser, environments just reset, an empty replay: -> RunnerState"""
    config = program.config
    weights_key, actor_key, loop_key = jax.random.split(key, 3)
    params = nnx.state(Networks(config.model, program.env, nnx.Rngs(weights_key)))
    agent = AgentState(params=params, slow_critic=jax.tree.map(jnp.copy, params["critic"]),
                       average=jax.tree.map(jnp.copy, params), return_range=jnp.zeros(2),
                       opt_state=program.optimizer.init(params), step=jnp.zeros((), jnp.int32))
    actor = start_episodes(program, config.run.envs, actor_key)
    row = jax.tree.map(lambda x: x[0], transition(actor.timestep, actor.a, actor.latent))
    replay = replay_buffer.create(row, config.run.envs, config.replay.capacity)
    return RunnerState(agent=agent, replay=replay, actor=actor, key=loop_key)


ONE_SEED = Calls(init, prefill, train_chunk, evaluate)
SEVERAL_SEEDS = ONE_SEED.over_seeds()


def calls_for(program, several=False, steps=0):
    """The Calls for a program's environment: inside the compiled loop, or stepped by the host"""
    if not program.env.on_host:
        return SEVERAL_SEEDS if several else ONE_SEED
    parts = host_loop.Parts(assemble, start_episodes, play, update, on_all_devices)
    return Calls(init, *host_loop.calls(parts, steps))  # of the run so far


def train(program, session):
    """The host's loop: prefill; then train a chunk, evaluate, log, save; at the end the score"""
    run, calls = program.config.run, calls_for(program, session.several, session.steps)
    rounds, key = rounds_per_chunk(program.config), session.init_key()
    with ThreadPoolExecutor(1) as pool:  # the longest compilation runs beside the others
        shapes = session.whole(calls.init.eval_shape(program, key))
        compiling = pool.submit(xla.compile_in_full, calls.train_chunk, program, shapes, rounds)
        state = session.restore(calls.init(program, key))
        if not state.replay.written.any():  # a new run, or one that was saved without its replay
            state, stats = calls.prefill(program, state, run.prefill // run.envs)
            session.prefilled(run.prefill // run.envs * run.envs, stats)
    chunks = train_chunks(program, compiling.result(), state, session)
    del state  # the chunks own it now: a second reference would keep a copy of the replay
    for chunk in chunks if session.unfinished else ():
        evaluation = None
        if chunk.params is not None:  # an evaluation is due
            key = session.eval_key(chunk.steps)
            evaluation = calls.evaluate(program, chunk.params, key)
        session.log(chunk, evaluation)
        if chunk.state is not None:  # a save is due
            session.save(chunk.state)
    if session.unfinished:  # a signal stopped it
        return session.stopped()
    session.end(calls.evaluate(program, session.best(), session.eval_key()))


def main(argv=None, began=None):
    """The command: read the YAML, build, train, leave a run folder: -> exit status"""
    try:
        command = cli.parse(argv)
        if command.list_envs:
            print(gymnax_wrappers.listing(REFERENCES))
            return 0
        check_saved(command)  # before the code of an environment is imported
        env = gymnax_wrappers.configured(command.config.run)
        program, shapes = build(command.config, env)
        session = Session(command, env, shapes, began)
    except (ValueError, OSError) as error:
        return GROUP.complain(error)
    with session:  # a full disk, a nan or a signal ends here; session.status says which
        train(program, session)
    return session.status


if __name__ == "__main__":
    GROUP.leave(main(began=STARTED))
