"""DreamerV3 in one file, to be read beside the paper.

Hafner, Pasukonis, Ba, Lillicrap: "Mastering diverse control tasks through world models", Nature
2025, arXiv 2301.04104v2. Equation numbers are those of arXiv v2.

    python dreamer.py --config dreamer.yaml --env CartPole-v1

The agent learns a world model from replayed experience (a recurrent state-space model, RSSM),
dreams with it from every replayed state, and learns what to do from these dreams alone.

Reading map, top to bottom: what flows through the program · robust predictions
(Eq. 8-11) · networks (Eq. 1, 4) · world model learning (Eq. 1-3) · critic learning (Eq. 4-5) ·
actor learning (Eq. 6-7) · one gradient step · acting · training. Networks that know nothing of
reinforcement learning live in jaxmodels_nnx.py, everything about Gymnax in gymnax_wrappers.py,
every number in dreamer.yaml, replay, optimiser, files, plots in utils/.

Notation (paper: code): x_t observation: `x` · a_t action, one-hot or vector: `a` · r_t: `r` ·
c_t continue: `c` · h_t recurrent state: `h` · z_t ~ posterior q, ẑ_t ~ prior p: `z` ·
s_t = (h_t, z_t) laid side by side: `s` · R^λ_t: `returns` · v(s_t): `values` · S: `return_range` ·
γ = 1-1/`horizon`; λ, η: `lambda_`, `eta`. `params`: weights, `config`: numbers, `key`: randomness.

Shapes, the same letters everywhere: B sequences in a batch, T steps in a sequence, N = B·T dreams,
H steps of a dream, E environments, D recurrent units, S latents of K classes each, F = D + S·K
features, A action entries, V value bins, X the observation's axes. Time is axis 1, left to right.

The time line. A row of the replay is what the agent knew and did at time t: x_t, r_t and the flags
arrived because of a_{t-1}; then a_t was chosen. With x_t = t, r_t = 100 + t, a_t = 10 t, an episode
that terminates at t = 3 and one that its time limit cuts at t = 2:

    row           0    1    2    3  |  4    5    6  |  7
    x             0    1    2    3  |  0    1    2  |  0
    r             0  101  102  103  |  0  101  102  |  0
    is_first      1    0    0    0  |  1    0    0  |  1
    is_last       0    0    0    1  |  0    0    1  |  0
    is_terminal   0    0    0    1  |  0    0    0  |  0
    a             0   10   20   (30)|  0   10   (20)|  0     (chosen, never carried out)

So h_t = f(h_{t-1}, z_{t-1}, a_{t-1}), where is_first puts zeros in place of all three. The reward
and continue predicted from s_t are r_t and c_t, and what a_t earns stands at t + 1:
R_t = r_{t+1} + c_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1}). The discount γ = 1 - 1/horizon lives in the
continue target and is multiplied nowhere else in a dream.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from utils.core import versions, xla

STARTED = time.perf_counter()  # in front of the heavy imports: the user waits for them too
versions.check(__name__ == "__main__")  # before what an old Python or jax could not import
xla.set_flags()

import jax
import jax.numpy as jnp
import optax
from flax import nnx

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
from utils.core import cli, optim
from utils.core import replay as replay_buffer
from utils.core.devices import divided, gathered, side_by_side
from utils.core.references import REFERENCES
from utils.core.settings import Config, rounds_per_chunk, updates_per_steps
from utils.run.session import Session

# ---- What flows through the program --------------------------------------------------------------


class Latent(NamedTuple):
    """The model state s_t: recurrent h [..., D] and sampled one-hot z [..., S, K]."""

    h: jax.Array
    z: jax.Array


class Row(NamedTuple):
    """One row of the replay (the time line above); stored [E, C, ...], sampled [B, T + 1, ...]."""

    x: jax.Array  # [..., X] observation, float32 or uint8
    r: jax.Array  # [...] reward
    is_first: jax.Array  # [...] first row of an episode
    is_last: jax.Array  # [...] last row of an episode, for whatever reason
    is_terminal: jax.Array  # [...] the world ended here; never true for a time limit
    a: jax.Array  # [..., A] action chosen here
    h: jax.Array  # [..., D] recurrent state, as of the last time this row was seen
    z: jax.Array  # [..., S] class of each latent, uint8


class Dream(NamedTuple):
    """What was imagined from N states: features s [N, H+1, F] and the actions a [N, H, A]."""

    s: jax.Array
    a: jax.Array


class AgentState(NamedTuple):
    """All that learning changes."""

    params: Any  # weights of the networks
    slow_critic: Any  # weights of the slow critic
    opt_state: Any
    return_range: jax.Array  # [2] running low and high percentile of the returns
    step: jax.Array  # updates done


class Finished(NamedTuple):
    """Episodes that ended at a row: whether, return, number of actions; [E]."""

    is_last: jax.Array
    total: jax.Array
    length: jax.Array


class Player(NamedTuple):
    """E environments in mid-episode, and what the agent remembers of them."""

    env: Any  # environment states [E, ...]
    now: Any  # the Step that has just arrived [E, ...]
    latent: Latent  # s_{t-1}
    a: jax.Array  # a_{t-1} [E, A]
    total: jax.Array  # return of the running episode [E]
    length: jax.Array  # its number of actions so far [E]


class Loop(NamedTuple):
    """Everything that a compiled chunk of training takes and gives back."""

    agent: AgentState
    replay: replay_buffer.Replay
    player: Player
    key: jax.Array


@dataclass(frozen=True, eq=False)
class Program:
    """What is fixed while the program runs: a static argument of every compiled function."""

    config: Config
    env: gymnax_wrappers.Environment
    networks: nnx.GraphDef
    critic: nnx.GraphDef
    optimizer: optax.GradientTransformation


# ---- Robust predictions (Eq. 8-11) ---------------------------------------------------------------


def symlog(x):
    """Eq. 8 | symlog(x) = sign(x) ln(|x| + 1), of any shape"""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x):
    """Eq. 9 | symexp(x) = sign(x) (exp|x| - 1), of any shape: the inverse of symlog"""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def value_bins(n):
    """Eq. 10 | the bins b_i = symexp(-20 ... 20), n of them, antisymmetric to the bit

    Shapes: -> [V]; n is odd, so that the middle bin is 0."""
    with jax.ensure_compile_time_eval():  # a constant, or XLA computes it anew for every logit
        half = symexp(jnp.linspace(-20.0, 0.0, n // 2 + 1))
        return jnp.concatenate([half, -half[:-1][::-1]])


def twohot_mean(logits, bins):
    """Eq. 10 | ŷ = softmax(logits)ᵀ b, as Σ (p_i - p_-i) b_i over the positive bins

    So zero logits give exactly 0, however the compiler contracts products and sums.

    Shapes: logits [..., V], bins [V], antisymmetric -> [...]."""
    probs, middle = jax.nn.softmax(logits), bins.shape[0] // 2
    surplus = probs[..., middle + 1 :] - probs[..., :middle][..., ::-1]
    return jnp.sum(surplus * bins[middle + 1 :], -1)


def twohot_loss(logits, target, bins):
    """Eq. 11 | -twohot(y)ᵀ ln softmax(logits), y between its two nearest bins, linear in raw space

    Targets outside the bins count as the end bin. No [..., V] target is ever built.

    Shapes: logits [..., V], target [...], bins [V] -> [...]."""
    target = jnp.clip(target, bins[0], bins[-1])
    below = jnp.searchsorted(bins, target, side="right") - 1
    below = jnp.clip(below, 0, bins.shape[0] - 2)
    share = (target - bins[below]) / (bins[below + 1] - bins[below])
    two = jnp.take_along_axis(logits, jnp.stack([below, below + 1], -1), -1)
    picked = (1.0 - share) * two[..., 0] + share * two[..., 1]
    return jax.nn.logsumexp(logits, -1) - picked


def unimix(logits, ratio):
    """Probabilities (1 - ratio) softmax(logits) + ratio uniform: no class ever dies

    Shapes: logits [..., K] -> [..., K].
    Source: paper, section "World model learning", 1% unimix."""
    return (1.0 - ratio) * jax.nn.softmax(logits) + ratio / logits.shape[-1]


def sample_onehot(uniform, probs):
    """z ~ Categorical(probs) as one-hot, with the straight-through gradient of probs

    Shapes: uniform [...] in [0, 1), against the cumulative sum of probs [..., K] -> [..., K]."""
    bounds = jnp.cumsum(jax.lax.stop_gradient(probs), -1)[..., :-1]
    onehot = jax.nn.one_hot(jnp.sum(uniform[..., None] >= bounds, -1), probs.shape[-1])
    return onehot + (probs - jax.lax.stop_gradient(probs))  # the bracket is exactly 0


def kl(p, q):
    """KL(p ‖ q) = Σ_k p_k (ln p_k - ln q_k) in nats, of probabilities [..., K] -> [...]"""
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)), -1)


def entropy(p):
    """H[p] = -Σ_k p_k ln p_k in nats, of probabilities [..., K] -> [...]"""
    return -jnp.sum(p * jnp.log(p), -1)


# ---- Networks (Eq. 1, Eq. 4) ---------------------------------------------------------------------


def features(latent):
    """s = [h, z flat], what every head sees: h [..., D], z [..., S, K] -> [..., F]"""
    return jnp.concatenate([latent.h, latent.z.reshape(*latent.z.shape[:-2], -1)], -1)


class WorldModel(nnx.Module):
    """Eq. 1 | sequence model, encoder (posterior), dynamics (prior), reward, continue, decoder"""

    def __init__(self, model, env, rngs):
        self.model, self.is_image = model, env.is_image
        units, eps, z_size, s_size = model.units, model.norm_eps, model.z_size, model.s_size
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
        """Tokens of x, the symlog of a vector or pixels in [-0.5, 0.5]: [..., X] -> [..., ·]"""
        return self.encoder(x / 255.0 - 0.5 if self.is_image else symlog(x))

    def decode(self, latent):
        """x̂ [..., X]: a vector in symlog space, or an image in (0, 1)"""
        return self.decoder(latent.h, latent.z.reshape(*latent.z.shape[:-2], -1))

    def recur(self, latent, a):
        """Eq. 1 | h_t = f(h_{t-1}, z_{t-1}, a_{t-1}), actions beyond ±1 drawn back to ±1

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
            return Categorical(self.out(x))
        return bounded_normal(self.out(x), self.out_std(x), self.model)


class Networks(nnx.Module):
    """All networks of the agent: world model, actor, and the critic v(s_t) of Eq. 4"""

    def __init__(self, model, env, rngs):
        self.world = WorldModel(model, env, rngs)
        self.actor = Actor(model, env, rngs)
        critic = MLP(model.s_size, model.units, model.critic_layers, model.norm_eps, rngs)
        self.critic = Head(critic, model.units, model.bins, rngs, outscale=0.0)

    def laid_out(self):
        """Itself, its recurrent weights as the steps of a loop need them: for speed alone"""
        self.world.sequence = self.world.sequence.laid_out()
        return self


def time_first(tree):
    """Swaps axes 0 and 1 of every array: `jax.lax.scan` wants time in front, we want it second."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


# ---- World model learning (Eq. 1-3) --------------------------------------------------------------


def observe_step(world, latent, a, now, uniform):
    """Eq. 1 | s_{t-1}, a_{t-1}, x_t -> s_t ~ q: one step of the RSSM on real data

    Where is_first is true, the past is zeroed first.

    Shapes: latent [B, D], [B, S, K]; a [B, A]; now = (tokens [B, ·], is_first [B]);
    uniform [B, S] in [0, 1) -> Latent, posterior probabilities [B, S, K]."""
    tokens, is_first = now
    keep = 1.0 - is_first.astype(jnp.float32)
    past = Latent(latent.h * keep[:, None], latent.z * keep[:, None, None])
    h = world.recur(past, a * keep[:, None])
    probs = world.posterior_probs(h, tokens)
    return Latent(h, sample_onehot(uniform, probs)), probs


def observe(world, start, batch, key):
    """Eq. 1 | posterior states s_1 ... s_T of replayed sequences; row 0 gives the state before

    The one place where actions are shifted: row t meets a_{t-1}.

    Shapes: start is s_0 ([B, D], [B, S, K]), batch [B, T + 1, ...]
    -> Latent [B, T, ...], posterior probabilities [B, T, S, K]."""
    tokens = world.encode(batch.x[:, 1:])
    uniform = jax.random.uniform(key, (*tokens.shape[:2], world.model.latents))

    def step(latent, inputs):
        a, token, is_first, uniform = inputs
        latent, probs = observe_step(world, latent, a, (token, is_first), uniform)
        return latent, (latent, probs)

    inputs = time_first((batch.a[:, :-1], tokens, batch.is_first[:, 1:], uniform))
    _, outputs = jax.lax.scan(step, start, inputs)
    return time_first(outputs)


def decoder_loss(world, latent, x):
    """Eq. 3 | -ln p(x_t | s_t): squared error, in symlog space for vectors, summed over x

    Shapes: latent [B, T, ...], x [B, T, X] -> [B, T]."""
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
    """Eq. 3 | L_dyn = max(1, KL(sg(q) ‖ p)): the prior learns to foresee the posterior

    Shapes: posterior, prior [..., S, K] -> [...]; the KL is summed over S before the maximum."""
    return jnp.maximum(free_bits, kl(jax.lax.stop_gradient(posterior), prior).sum(-1))


def representation_loss(posterior, prior, free_bits):
    """Eq. 3 | L_rep = max(1, KL(q ‖ sg(p))): the posterior becomes easier to foresee

    Shapes: posterior, prior [..., S, K] -> [...]."""
    return jnp.maximum(free_bits, kl(posterior, jax.lax.stop_gradient(prior)).sum(-1))


# ---- Critic learning (Eq. 4-5) -------------------------------------------------------------------


def dream(networks, start, steps, key):
    """Eq. 4 | imagined trajectories: a_t ~ π(s_t), h_{t+1} = f(s_t, a_t), z_{t+1} ~ p(h_{t+1})

    Shapes: start is N states, steps is H -> Dream of s [N, H+1, F], a [N, H, A]."""
    def step(latent, step_key):
        action_key, latent_key = jax.random.split(step_key)
        s = features(latent)
        a = networks.actor(s).sample(action_key)
        h = networks.world.recur(latent, a)
        uniform = jax.random.uniform(latent_key, latent.z.shape[:-1])
        return Latent(h, sample_onehot(uniform, networks.world.prior_probs(h))), (s, a)

    last, (s, a) = jax.lax.scan(step, start, jax.random.split(key, steps))
    return Dream(*time_first((jnp.concatenate([s, features(last)[None]]), a)))


def lambda_returns(r, c, values, lambda_):
    """Eq. 5 | R_t = r_{t+1} + c_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1}), t = 0 ... H-1, R_H = v_H

    Shapes: r, c, values [N, H+1], aligned with the state they were predicted from; lambda_ a
    number or [N, H+1] likewise -> [N, H].
    Differs: the paper writes r_t for what a_t earns; here it stands at t + 1 (the time line)."""
    def step(following, now):
        r_next, c_next, v_next, lambda_next = now
        now = r_next + c_next * ((1.0 - lambda_next) * v_next + lambda_next * following)
        return now, now

    lambda_ = jnp.broadcast_to(lambda_, r.shape)
    inputs = time_first(tuple(x[:, 1:] for x in (r, c, values, lambda_)))
    _, returns = jax.lax.scan(step, values[:, -1], inputs, reverse=True)
    return time_first(returns)


def trajectory_weights(c):
    """Π_{i≤t} c_i, the chance that a dream still goes on, its start's c included: [N, H+1]"""
    return jnp.cumprod(c, 1)


def critic_loss(logits, returns, slow_values, bins, slow_scale):
    """Eq. 5 | -ln p(R_t | s_t), and towards the slow critic's prediction

    Shapes: logits [..., V]; returns, slow_values [...] -> [...]."""
    to_returns = twohot_loss(logits, jax.lax.stop_gradient(returns), bins)
    to_slow = twohot_loss(logits, jax.lax.stop_gradient(slow_values), bins)
    return to_returns + slow_scale * to_slow


def replay_returns(rows, bootstrap, learning):
    """λ-returns of real rewards, t = 0 ... T-2, that start anew from the dream's where rows end

    Shapes: rows, bootstrap [B, T] -> [B, T-1]; bootstrap is the dreamed return of each row.
    Source: official code, `repl_loss`; golden file 4b_repl_loss."""
    c = (1.0 - rows.is_terminal) * (1.0 - 1.0 / learning.horizon)
    lambda_ = (1.0 - rows.is_last) * learning.lambda_
    return lambda_returns(rows.r, c, bootstrap, lambda_)


# ---- Actor learning (Eq. 6-7) --------------------------------------------------------------------


@gathered  # the returns of all devices
def update_return_range(return_range, returns, learning):
    """Eq. 7 | S = EMA(Per(R, 95) - Per(R, 5)): the two percentiles, averaged separately from 0

    Shapes: return_range [2], returns any -> [2]."""
    levels = jnp.array([learning.return_low, learning.return_high])
    new = jnp.percentile(returns, levels)
    return (1.0 - learning.return_rate) * return_range + learning.return_rate * new


def advantages(returns, values, return_range, limit):
    """Eq. 6 | (R_t - v(s_t)) / max(L, S): returns, values [N, H], return_range [2] -> [N, H]"""
    return (returns - values) / jnp.maximum(limit, return_range[1] - return_range[0])


def actor_loss(policy, a, advantage, eta):
    """Eq. 6 | -(sg(advantage) ln π(a_t | s_t) + η H[π(a_t | s_t)])

    Shapes: policy over a [N, H, A], advantage [N, H] -> [N, H]."""
    reinforce = jax.lax.stop_gradient(advantage) * policy.log_prob(a)
    return -(reinforce + eta * policy.entropy())


# ---- One gradient step ---------------------------------------------------------------------------


class Learned(NamedTuple):
    """What one look at a batch leaves behind beside its gradient."""

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


class Fixed(NamedTuple):
    """Networks that are only asked, never taught."""

    networks: Networks
    slow_critic: Head


def dream_losses(networks, fixed, dreamed, return_range, config):
    """Eq. 5-7 | critic and actor losses on dreams; nothing but actor and critic gets a gradient

    `fixed` holds the same networks without gradient, and the slow critic.
    -> dict of scalars, λ-returns [N, H] and the new return range [2], metrics."""
    learning, bins = config.learning, value_bins(config.model.bins)

    def foretell(s):  # one step of all dreams at a time: that much stays in a CPU's cache
        r, c = fixed.networks.world.reward(s), fixed.networks.world.continue_(s)[..., 0]
        return twohot_mean(r, bins), jax.nn.sigmoid(c), twohot_mean(fixed.slow_critic(s), bins)

    s = time_first(dreamed.s)  # as the dream's scan left it, so that nothing large is copied
    s, last = s[:-1], s[-1]  # the last state chooses nothing, and what it is worth teaches nothing
    logits, policy = networks.critic(s), time_first(networks.actor(s))
    values = jax.lax.stop_gradient(twohot_mean(logits, bins))
    r, c, slow_values = jax.lax.map(foretell, s)
    ends = *foretell(last)[:2], twohot_mean(fixed.networks.critic(last), bins)
    r, c, values = (jnp.vstack([x, end]).T for x, end in zip((r, c, values), ends))
    returns = lambda_returns(r, c, values, learning.lambda_)
    return_range = update_return_range(return_range, returns, learning)
    advantage = advantages(returns, values[:, :-1], return_range, learning.return_limit)
    weight = trajectory_weights(c)[:, :-1]
    critic = critic_loss(logits, returns.T, slow_values, bins, learning.slow_scale).T
    actor = actor_loss(policy, dreamed.a, advantage, learning.eta)
    losses = {"critic": (weight * critic).mean(), "actor": (weight * actor).mean()}
    metrics = {
        "dream/return": returns.mean(), "dream/reward": r[:, 1:].mean(),
        "dream/continue": c[:, 1:].mean(), "dream/value": values.mean(),
        "actor/entropy": policy.entropy().mean(), "actor/advantage_std": advantage.std(),
        "actor/return_low": return_range[0], "actor/return_high": return_range[1],
    }
    return losses, (returns, return_range), metrics


def replay_critic_loss(networks, fixed, latent, rows, bootstrap, config):
    """The critic on real rewards, t = 0 ... T-2; its gradient reaches the world model through s

    Rows that end an episode have no return and count as zero.

    Shapes: latent, rows, bootstrap [B, T, ...] -> scalar.
    Source: paper, section "Critic learning", β_repval; golden file 4b_repl_loss."""
    learning, bins = config.learning, value_bins(config.model.bins)
    s = features(latent)[:, :-1]
    slow_values = twohot_mean(fixed.slow_critic(jax.lax.stop_gradient(s)), bins)
    returns = replay_returns(rows, bootstrap, learning)
    loss = critic_loss(networks.critic(s), returns, slow_values, bins, learning.slow_scale)
    return jnp.mean((1.0 - rows.is_last[:, :-1]) * loss)


def agent_losses(program, params, state, batch, key):
    """Eq. 2, 4 | every loss on one batch [B, T + 1, ...], as dict of scalars, and what it leaves"""
    config, (observe_key, dream_key) = program.config, jax.random.split(key)
    networks = nnx.merge(program.networks, params).laid_out()
    fixed = Fixed(nnx.merge(program.networks, jax.lax.stop_gradient(params)).laid_out(),
                  nnx.merge(program.critic, state.slow_critic))
    losses, latent, metrics = world_losses(networks, batch, observe_key, config)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.stop_gradient(latent))
    dreamed = dream(fixed.networks, flat, config.learning.imagination, dream_key)
    behaviour, (returns, return_range), more = dream_losses(
        networks, fixed, dreamed, state.return_range, config)
    rows = jax.tree.map(lambda x: x[:, 1:], batch)
    bootstrap = returns[:, 0].reshape(rows.r.shape)
    replay = replay_critic_loss(networks, fixed, latent, rows, bootstrap, config)
    losses = losses | behaviour | {"replay_critic": replay}
    metrics |= more | {f"losses/{name}": loss for name, loss in losses.items()}
    return losses, Learned(return_range, jax.lax.stop_gradient(latent), metrics)


def total_loss(params, program, state, batch, key):
    """Eq. 2 | Σ β · L over all losses; every loss has a scale and every scale a loss"""
    losses, learned = agent_losses(program, params, state, batch, key)
    learning = program.config.learning
    scales = {
        "prediction": learning.beta_pred, "dynamics": learning.beta_dyn,
        "representation": learning.beta_rep, "actor": learning.beta_actor,
        "critic": learning.beta_critic, "replay_critic": learning.beta_replay,
    }
    assert losses.keys() == scales.keys(), (losses.keys(), scales.keys())
    return sum(scales[name] * losses[name] for name in scales), learned


def train_step(program, state, batch, key):
    """One update of everything on one batch [B, T + 1, ...]: -> AgentState, Latent, metrics"""
    gradient = jax.grad(total_loss, has_aux=True)
    grads, learned = gradient(state.params, program, state, batch, key)
    updates, opt_state = program.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    rate = program.config.learning.slow_rate
    slow_critic = optax.incremental_update(params["critic"], state.slow_critic, rate)
    metrics = learned.metrics | {"optimizer/grad_norm": optax.tree.norm(grads)}
    state = AgentState(params, slow_critic, opt_state, learned.return_range, state.step + 1)
    return state, learned.latent, metrics


# ---- Acting --------------------------------------------------------------------------------------


def act(networks, now, latent, a, key):
    """s_t ~ q(s_{t-1}, a_{t-1}, x_t), a_t ~ π(s_t), for E environments

    Shapes: now is a Step [E, ...]; latent and a [E, A] of the step before -> Latent, a [E, A]."""
    latent_key, action_key = jax.random.split(key)
    tokens = networks.world.encode(now.x)
    uniform = jax.random.uniform(latent_key, latent.z.shape[:-1])
    latent, _ = observe_step(networks.world, latent, a, (tokens, now.is_first), uniform)
    return latent, networks.actor(features(latent)).sample(action_key)


def start_playing(program, envs, key):
    """Environments just reset, with nothing remembered: -> Player of `envs` environments"""
    model = program.config.model
    env, now = jax.vmap(program.env.reset)(jax.random.split(key, envs))
    latent = Latent(jnp.zeros((envs, model.deter)), jnp.zeros((envs, model.latents, model.classes)))
    a, zeros = jnp.zeros((envs, program.env.action_size)), jnp.zeros(envs)
    return Player(env, now, latent, a, zeros, zeros.astype(jnp.int32))


def play(program, networks, player, key):
    """One step of E environments: -> Player after it, the Row [E] it leaves, Finished [E]"""
    act_key, env_key = jax.random.split(key)
    now = player.now
    latent, a = act(networks, now, player.latent, player.a, act_key)
    row = Row(*now, a, latent.h, jnp.argmax(latent.z, -1).astype(jnp.uint8))
    total, length = player.total + now.r, player.length + ~now.is_first
    finished = Finished(now.is_last, total, length)
    going_on = ~now.is_last
    env, now = jax.vmap(program.env.step)(jax.random.split(env_key, len(a)), player.env, a)
    return Player(env, now, latent, a, total * going_on, length * going_on), row, finished


def collect(program, loop, steps):
    """Play `steps` steps in E environments into the replay: -> Loop, Finished [steps, E]"""
    networks = nnx.merge(program.networks, loop.agent.params).laid_out()
    key, play_key = jax.random.split(loop.key)

    def step(carry, step_key):
        player, replay = carry
        player, row, finished = play(program, networks, player, step_key)
        return (player, replay_buffer.write(replay, row)), finished

    keys = jax.random.split(play_key, steps)
    (player, replay), finished = jax.lax.scan(step, (loop.player, loop.replay), keys)
    return Loop(loop.agent, replay, player, key), finished


# ---- Training ------------------------------------------------------------------------------------


def learn(program, loop):
    """One batch from the replay, one update, fresh latents back to the replay: -> Loop, metrics"""
    config = program.config.replay
    key, sample_key, train_key = jax.random.split(loop.key, 3)
    batch, index = replay_buffer.sample(loop.replay, sample_key, config.batch, config.length + 1)
    agent, latent, metrics = train_step(program, loop.agent, batch, train_key)
    fresh = {"h": latent.h, "z": jnp.argmax(latent.z, -1).astype(jnp.uint8)}
    replay = replay_buffer.refresh(loop.replay, index._replace(place=index.place[:, 1:]), fresh)
    return Loop(agent, replay, loop.player, key), metrics


@partial(jax.jit, static_argnums=(0, 2), donate_argnums=1)
@divided  # among run.devices
def train_chunk(program, loop, rounds):
    """`rounds` times k environment steps and U updates: -> Loop, Finished, metrics [rounds, U]"""
    updates, steps = updates_per_steps(program.config)

    def one_round(loop, _):
        loop, finished = collect(program, loop, steps)
        loop, metrics = jax.lax.scan(lambda loop, _: learn(program, loop), loop, length=updates)
        return loop, (finished, metrics)

    loop, (finished, metrics) = jax.lax.scan(one_round, loop, length=rounds)
    return loop, finished, metrics


fill = jax.jit(collect, static_argnums=(0, 2), donate_argnums=1)  # by the untrained policy


@partial(jax.jit, static_argnums=0)
def evaluate(program, params, key):
    """Returns, lengths [episodes] of fresh episodes, side by side; actions are sampled as ever"""
    run, networks = program.config.run, nnx.merge(program.networks, params).laid_out()
    start_key, play_key = jax.random.split(key)
    player = start_playing(program, run.eval_episodes, start_key)
    nothing = Finished(jnp.zeros_like(player.now.is_last), player.total, player.length)

    def going_on(carry):
        _, done, t = carry
        return ~done.is_last.all() & (t < run.eval_limit)

    def step(carry):
        player, done, t = carry
        player, _, finished = play(program, networks, player, jax.random.fold_in(play_key, t))
        done = jax.tree.map(lambda old, new: jnp.where(done.is_last, old, new), done, finished)
        return player, done, t + 1

    _, done, _ = jax.lax.while_loop(going_on, step, (player, nothing, 0))
    return done.total, done.length  # so far, for an episode that eval_limit cut


def build(config, env):
    """The Program, and the shapes of all weights (nothing is allocated)"""
    model = config.model
    networks, shapes = nnx.split(nnx.eval_shape(lambda: Networks(model, env, nnx.Rngs(0))))
    critic, _ = nnx.split(nnx.merge(networks, shapes).critic)
    rows = (config.run.steps - config.run.prefill) * config.run.train_ratio
    updates = round(rows / (config.replay.batch * config.replay.length))
    return Program(config, env, networks, critic, optim.laprop(config.optimizer, updates)), shapes


@partial(jax.jit, static_argnums=0)
def init(program, key):
    """Weights, optimiser, environments just reset, an empty replay: -> Loop"""
    config = program.config
    weights_key, player_key, loop_key = jax.random.split(key, 3)
    params = nnx.state(Networks(config.model, program.env, nnx.Rngs(weights_key)))
    agent = AgentState(params, jax.tree.map(jnp.copy, params["critic"]),
                       program.optimizer.init(params), jnp.zeros(2), jnp.zeros((), jnp.int32))
    player = start_playing(program, config.run.envs, player_key)
    row = Row(*player.now, player.a, player.latent.h, jnp.argmax(player.latent.z, -1))
    row = jax.tree.map(lambda x: x[0], row._replace(z=row.z.astype(jnp.uint8)))
    replay = replay_buffer.create(row, config.run.envs, config.replay.capacity)
    return Loop(agent, replay, player, loop_key)


ONE = (init, fill, train_chunk, evaluate)  # what `train` calls, for one agent or for several
SEVERAL = (side_by_side(init, (None, 0)), side_by_side(fill, (None, 0, None), 1),
           side_by_side(train_chunk, (None, 0, None), 1), side_by_side(evaluate, (None, 0, 0)))


def train(program, session):
    """The host's loop over compiled chunks: play, learn, evaluate, save"""
    run, (updates, k) = program.config.run, updates_per_steps(program.config)  # in one round
    begin, play_first, learn_on, score = SEVERAL if session.several else ONE
    rounds, init_key = rounds_per_chunk(program.config), session.init_key()
    with ThreadPoolExecutor(1) as pool:  # the long compilation, beside the short ones
        shapes = begin.eval_shape(program, init_key)
        chunk = pool.submit(xla.compile_in_full, learn_on, program, shapes, rounds)
        loop = session.restore(begin(program, init_key))
        if not loop.replay.written.any():  # a new run, or one that was saved without its replay
            loop, finished = play_first(program, loop, run.prefill // run.envs)
            session.filled(run.prefill // run.envs * run.envs, finished)
    chunk, going_on = chunk.result(), session.unfinished
    ahead = chunk(loop) if going_on else None  # which takes the arrays of `loop` for its own
    while going_on:
        (loop, finished, metrics), steps = jax.block_until_ready(ahead), rounds * k * run.envs
        evaluates, saves, going_on = session.due(steps)
        params = jax.device_get(loop.agent.params) if evaluates else None
        saved = jax.device_get(loop) if saves else None
        if going_on:
            ahead = chunk(loop)  # runs while the host evaluates and writes
        found = score(program, params, session.eval_key(steps)) if evaluates else None
        session.record(steps, rounds * updates, finished, metrics, params, found)
        if saves:
            session.save(saved)
    if session.unfinished:
        return session.stopped()
    session.end(score(program, session.best(), session.eval_key()))


def main(argv=None, began=None):
    """The command: read the YAML, build, train, leave a run folder; returns the exit status"""
    try:
        command = cli.parse(argv)
        if command.list_envs:
            print(gymnax_wrappers.listing(REFERENCES))
            return 0
        env = gymnax_wrappers.configured(command.config.run)
        program, shapes = build(command.config, env)
        session = Session(command, env, shapes, began)
    except (ValueError, OSError) as error:
        return cli.complain(error)
    with session:  # a full disk, a nan or a signal ends here, and stands in session.status
        train(program, session)
    return session.status


if __name__ == "__main__":
    sys.exit(main(began=STARTED))
