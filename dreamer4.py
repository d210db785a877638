"""Dreamer 4 in one file, to be read beside the paper.

Hafner, Yan, Lillicrap: "Training Agents Inside of Scalable World Models", 2025, arXiv 2509.24527.

    python dreamer4.py --config dreamer4.yaml

The agent learns from recorded play alone, in four phases. A tokenizer learns to compress images
into a few numbers (1). A transformer learns to dream the numbers of the next frame (2). It learns
which actions the recorded player chose, and which rewards followed (3). Then a policy learns in
dreams to do better (4), and only at the end does it meet the world.

Reading map, top to bottom: what flows through the program · causal tokenizer (section 3.1, Eq. 5) ·
shortcut forcing (section 2 and 3.2, Eq. 1-4, 6-8) · dynamics (section 3.2) · generation (Eq. 2) ·
behaviour cloning and reward model (section 3.3, Eq. 9) · imagination training (Eq. 10-11) · the
four kinds of update · playing · figures · training. The transformer (section 3.4) is in
utils/dreamer4/layers.py, the world and its data in utils/dreamer4/square.py, the hyperparameters in
dreamer4.yaml. Symlog, two-hot and λ-returns are those of dreamer.py.

Notation (paper: code): x_t image: `x` · z_t latents of an image: `z`; corrupted, z̃: `noisy` ·
ẑ_1, what the dynamics predicts: `z1` · τ signal level, 0 noise and 1 data, and d step size, both in
units of 1/K_max: `tau`, `d` · a_t: `a` · r_t: `r` · q task: `q` · h_t task output embedding: `h` ·
R^λ_t: `returns` · v_t: `values`. `params`: weights, `config`: numbers, `key`: randomness.

Shapes, the same letters everywhere: B sequences of a batch, T frames of a sequence, [H, W, 3] an
image, P patches of X numbers, L latent tokens of C numbers, D width, S tokens of a frame, A
actions, M actions and rewards ahead, V value bins, N dreams of G frames. Time is axis 1.

The time line. Block t of the dynamics holds the action a_{t-1} and the frame z_t that followed.
From h_t come the reward r_t of that frame and the action a_t chosen there, as in dreamer.py.
"""

import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from utils.core import start

STARTED = time.perf_counter()  # before the heavy imports: the user waits for them too
if __name__ == "__main__":
    start.announce()

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dreamer import lambda_returns, twohot_loss, twohot_mean, value_bins
from jaxmodels_nnx import MLP, Categorical, Head, Linear, RMSNorm
from utils.core import cli
from utils.dreamer4 import optimizer, square
from utils.dreamer4.baselines import baselines
from utils.dreamer4.command import parse
from utils.dreamer4.layers import Transformer, no_past, normal, patchify, unpatchify, with_first
from utils.dreamer4.pictures import SHOWN, Shown
from utils.dreamer4.session import Session
from utils.dreamer4.settings import PHASES, SCALES, TRAINED, Config, layer_kinds
from utils.dreamer4.square import ACTIONS, UNKNOWN

# ---- What flows through the program --------------------------------------------------------------


class Record(NamedTuple):
    """Recorded play as the dynamics sees it: a row holds what arrived at time t and what followed.

    Actions are UNKNOWN where nobody knows them."""

    z: jax.Array  # [B, T, L, C] latents
    before: jax.Array  # [B, T] a_{t-1}
    a: jax.Array  # [B, T] a_t
    r: jax.Array  # [B, T] r_t
    q: jax.Array | None  # [B] task; None where there is no agent yet
    apart: jax.Array  # [B] whether its frames are single images

    @property
    def conditions(self):
        """What the dynamics is told besides frames and their levels."""
        return self.before, self.q, self.apart


class Levels(NamedTuple):
    """Signal levels and step sizes of frames, whole numbers in units of 1/K_max; [B, T]."""

    tau: jax.Array
    d: jax.Array


class Memory(NamedTuple):
    """What the dynamics remembers of past frames, and of the last one h [N, D]."""

    pasts: list
    h: jax.Array


class Dreams(NamedTuple):
    """Dreamed rollouts: h [N, G+1, D], actions a [N, G], latents z [N, G, L, C]."""

    h: jax.Array
    a: jax.Array
    z: jax.Array


class TrainState(NamedTuple):
    """All that learning changes."""

    params: dict  # weights by network: tokenizer, dynamics, policy, reward, value, prior
    opt_state: dict  # by phase
    rms: dict  # running mean squares of the losses
    scale: jax.Array  # [] standard deviation of the latents
    step: dict  # updates done, by phase
    key: jax.Array


class Networks(NamedTuple):
    """The networks with their weights."""

    tokenizer: Any
    dynamics: Any
    policy: Any
    reward: Any
    value: Any
    prior: Any  # the policy as phase 3 left it


@dataclass(frozen=True, eq=False)
class Program:
    """What is fixed while the program runs: a static argument of every compiled function."""

    config: Config
    graphs: Networks  # of GraphDefs
    optimizers: dict  # by phase


# ---- Causal tokenizer (section 3.1) --------------------------------------------------------------


class Tokenizer(nnx.Module):
    """Images to latents and back: an encoder, a bottleneck with tanh, and a decoder.

    Differs: time layers work on the latent tokens alone, which is where the bottleneck is."""

    def __init__(self, config, rngs):
        shape, self.size = config.tokenizer, config.world.size
        self.shape = shape
        patches, pixels = (self.size // shape.patch) ** 2, 3 * shape.patch**2
        self.embed = Linear(pixels, shape.width, rngs)
        self.masked = normal(rngs, shape.width)
        self.places = normal(rngs, patches, shape.width)
        self.latents = normal(rngs, shape.latents, shape.width)
        self.encoder = Transformer(shape, layer_kinds(shape.encoder), shape.latents, rngs)
        self.norm_z = RMSNorm(shape.width, shape.norm_eps)
        self.to_z = Linear(shape.width, shape.channels, rngs, shape.bottleneck)
        self.from_z = Linear(shape.channels, shape.width, rngs)
        self.latent_places = normal(rngs, shape.latents, shape.width)
        self.queries = normal(rngs, patches, shape.width)
        self.decoder = Transformer(shape, layer_kinds(shape.decoder), shape.latents, rngs)
        self.norm_x = RMSNorm(shape.width, shape.norm_eps)
        self.to_pixels = Linear(shape.width, pixels, rngs, shape.bottleneck)

    def encode(self, x, hidden=None, pasts=None):
        """Images x [B, T, H, W, 3] uint8 -> latents in (-1, 1) [B, T, L, C], list of Past

        `hidden` [B, T, P]: the patches that a learned embedding replaces. Latent tokens see all,
        patches see patches."""
        tokens = self.embed(patchify(x / 127.5 - 1.0, self.shape.patch))
        if hidden is not None:
            tokens = jnp.where(hidden[..., None], self.masked[...], tokens)
        tokens = with_first(self.latents[...], tokens + self.places[...])
        n, is_latent = self.shape.latents, jnp.arange(tokens.shape[2]) < self.shape.latents
        seen = is_latent[:, None] | ~is_latent
        y, pasts = self.encoder(tokens, seen, slice(0, n), pasts=pasts)
        return jnp.tanh(self.to_z(self.norm_z(y))), pasts

    def decode(self, z):
        """Latents [B, T, L, C] -> images [B, T, H, W, 3], 0 black and 1 white

        The queries of the patches see all, latent tokens see latent tokens."""
        tokens = self.from_z(z) + self.latent_places[...]
        queries = jnp.broadcast_to(self.queries[...], (*z.shape[:2], *self.queries.shape))
        tokens = jnp.concatenate([tokens, queries], 2)
        is_latent = jnp.arange(tokens.shape[2]) < self.shape.latents
        seen = ~is_latent[:, None] | is_latent
        y, _ = self.decoder(tokens, seen, slice(self.shape.latents, None))
        return unpatchify(self.to_pixels(self.norm_x(y)), self.shape.patch, self.size)


def masked_patches(key, shape, low, high):
    """The patches of each image that are hidden, each with a probability p ~ U(low, high)

    Negative p count as 0. Shapes: shape is (B, T, P) -> bool [B, T, P].
    Source: paper, section 3.1, masked autoencoding."""
    p_key, patch_key = jax.random.split(key)
    p = jax.random.uniform(p_key, (*shape[:2], 1), minval=low, maxval=high)
    return jax.random.uniform(patch_key, shape) < p


def gradient_difference(x, y):
    """The perceptual loss: mean squared difference of image gradients, at several scales

    Shapes: images x, y [..., H, W, 3] -> scalar.
    Differs: the paper has LPIPS, whose pretrained network is not at hand."""
    error, losses = x - y, []
    for scale in SCALES:
        *lead, height, width, colours = error.shape
        small = error.reshape(*lead, height // scale, scale, width // scale, scale, colours)
        small = small.mean((-4, -2))
        losses += [jnp.mean(jnp.square(jnp.diff(small, axis=axis))) for axis in (-3, -2)]
    return sum(losses) / len(losses)


def normalised(losses, rms, rate):
    """Each loss over its running root mean square: -> dict of losses, the new mean squares

    Source: paper, section 3, loss normalisation. The mean squares begin at 1."""
    new = {name: (1.0 - rate) * rms[name] + rate * jnp.square(jax.lax.stop_gradient(loss))
           for name, loss in losses.items()}
    return {name: loss / jnp.sqrt(new[name]) for name, loss in losses.items()}, rms | new


def tokenizer_losses(networks, program, state, videos, key):
    """Eq. 5 | L = L_MSE + 0.2 L_LPIPS, on masked images: -> total, (mean squares, metrics)"""
    config = program.config.tokenizer
    batch_key, mask_key, noise_key = jax.random.split(key, 3)
    x = pieces(batch_key, videos, config.batch, config.length).x
    patches = (program.config.world.size // config.patch) ** 2
    hidden = masked_patches(mask_key, (*x.shape[:2], patches), config.mask_low, config.mask_high)
    z, _ = networks.tokenizer.encode(x, hidden)
    z = z + config.noise * jax.random.normal(noise_key, z.shape)
    decoded, x = networks.tokenizer.decode(z), x / 255.0
    losses = {"mse": jnp.mean(jnp.square(decoded - x))}
    scales = {"mse": 1.0}
    if config.perceptual:
        losses["perceptual"] = gradient_difference(decoded, x)
        scales["perceptual"] = config.perceptual
    return weighted(losses, scales, program, state)


def weighted(losses, scales, program, state):
    """Σ scale · L / RMS(L) over all losses: -> total, (new mean squares, metrics)"""
    assert losses.keys() == scales.keys(), (losses.keys(), scales.keys())
    parts, rms = normalised(losses, state.rms, program.config.optimizer.rms_rate)
    metrics = {f"losses/{name}": loss for name, loss in losses.items()}
    return sum(scales[name] * parts[name] for name in parts), (rms, metrics)


def pieces(key, rows, batch, length):
    """Random pieces of recorded sequences: Videos or a Record [N, T, ...] -> [B, T, ...]"""
    n, steps = rows[0].shape[:2]
    row_key, start_key = jax.random.split(key)
    row = jax.random.randint(row_key, (batch, 1), 0, n)
    t = jax.random.randint(start_key, (batch, 1), 0, steps - length + 1) + jnp.arange(length)
    return jax.tree.map(lambda x: x[row, t] if x.ndim > 1 else x[row[:, 0]], rows)


def first_frames(rows, n):
    """The first n frames of Videos or of a Record."""
    return jax.tree.map(lambda x: x[:, :n] if x.ndim > 1 else x, rows)


# ---- Shortcut forcing (sections 2 and 3.2) -------------------------------------------------------


def corrupt(z, noise, tau):
    """Eq. 1 | x_τ = (1 - τ) x_0 + τ x_1, with x_0 noise and x_1 data

    Shapes: z, noise [B, T, L, C], tau [B, T] from 0 to 1 -> [B, T, L, C]."""
    tau = tau[..., None, None]
    return (1.0 - tau) * noise + tau * z


def velocity(z1, noisy, tau):
    """Eq. 7 | b = (f(z̃, τ, d, a) - z̃) / (1 - τ): from the predicted data to the velocity

    Shapes: z1, noisy [B, T, L, C], tau [B, T] below 1 -> [B, T, L, C]."""
    return (z1 - noisy) / (1.0 - tau)[..., None, None]


def euler_step(noisy, v, d):
    """Eq. 2 | x_{τ+d} = x_τ + v d: noisy, v [B, T, L, C], d [B, T] -> [B, T, L, C]"""
    return noisy + v * d[..., None, None]


def ramp(tau):
    """Eq. 8 | w(τ) = 0.9 τ + 0.1, of any shape"""
    return 0.9 * tau + 0.1


def sample_levels(key, shape, large, power, kmax):
    """Eq. 4 | d ~ 1/U{1, 2, 4 ... K_max}, τ ~ U{0, d ... 1 - d}, for each frame: -> Levels [B, T]

    The first `large` rows have such step sizes, the others the smallest, 1/K_max. With a `power`
    other than 1, τ is u^power, rounded down to the grid.

    Differs: the paper prints 1/d for the grid's step. Its τ is uniform, and all rows are large."""
    d_key, tau_key = jax.random.split(key)
    exponent = jax.random.randint(d_key, shape, 0, kmax.bit_length())
    exponent = jnp.where(jnp.arange(shape[0])[:, None] < large, exponent, 0)
    d = 2**exponent
    u, steps = jax.random.uniform(tau_key, shape) ** power, kmax // d
    number = jnp.minimum(jnp.floor(u * steps).astype(jnp.int32), steps - 1)  # u may round to 1
    return Levels(tau=number * d, d=d)


def alternated(key, levels, share, context):
    """Every other frame of a `share` of the rows becomes context, like past frames of a dream

    Shapes: levels [B, T]; context is the τ of past frames -> Levels [B, T].
    Differs: the paper has nothing of the kind; its share is 0."""
    rows, steps = levels.tau.shape
    row_key, odd_key = jax.random.split(key)
    chosen = jax.random.uniform(row_key, (rows, 1)) < share
    odd = jax.random.randint(odd_key, (rows, 1), 0, 2)
    context_here = chosen & ((jnp.arange(steps) + odd) % 2 == 0)
    return Levels(tau=jnp.where(context_here, context, levels.tau),
                  d=jnp.where(context_here, 1, levels.d))


def bootstrap_target(f, noisy, levels, kmax):
    """Eq. 7 | z̃ + (1 - τ) sg(b' + b'')/2: where two half steps lead, as predicted data

    Frames with the smallest step stay as they are in both half steps: they have no target here.

    Shapes: f(noisy, levels) -> z1 [B, T, L, C]; levels [B, T] -> [B, T, L, C]."""
    larger = levels.d > 1
    half = jnp.where(larger, levels.d // 2, 1)
    moved = jnp.where(larger, half, 0)
    b1 = velocity(f(noisy, Levels(levels.tau, half)), noisy, levels.tau / kmax)
    between = euler_step(noisy, b1, moved / kmax)
    later = levels.tau + moved
    b2 = velocity(f(between, Levels(later, half)), between, later / kmax)
    return jax.lax.stop_gradient(euler_step(noisy, (b1 + b2) / 2.0, 1.0 - levels.tau / kmax))


def shortcut_loss(z1, target, tau):
    """Eq. 6-8 | w(τ) |ẑ_1 - target|², the mean over a frame's numbers

    With the target z_1 it is the flow loss; with that of `bootstrap_target` it equals
    (1 - τ)² |(ẑ_1 - z̃)/(1 - τ) - sg(b' + b'')/2|², for nothing learned is divided by 1 - τ.

    Shapes: z1, target [B, T, L, C], tau [B, T] -> [B, T]."""
    return ramp(tau) * jnp.mean(jnp.square(z1 - target), (-2, -1))


# ---- Dynamics (section 3.2) ----------------------------------------------------------------------


class Dynamics(nnx.Module):
    """ẑ_1 = f(z̃, τ, d, a): a transformer over the frames' latents and what was done between them.

    The tokens of a frame, in this order: latents, agent (where there is a task), action, τ and d,
    registers. The agent's token sees all others, and none of them sees it."""

    def __init__(self, config, rngs):
        shape, latents = config.dynamics, config.tokenizer
        self.shape, self.z_shape = shape, (latents.latents, latents.channels)
        self.temperature = config.imagination.temperature
        packed = latents.latents * latents.channels // shape.spatial
        sizes = shape.kmax.bit_length()
        self.from_z = Linear(packed, shape.width, rngs)
        self.places = normal(rngs, shape.spatial, shape.width)
        self.tau = normal(rngs, shape.kmax, shape.width - shape.width // 2)
        self.d = normal(rngs, sizes, shape.width // 2)
        self.unknown = normal(rngs, shape.width)
        self.action = normal(rngs, len(ACTIONS), shape.width)
        self.registers = normal(rngs, shape.registers, shape.width)
        self.task = normal(rngs, config.world.tasks, shape.width)
        self.transformer = Transformer(shape, layer_kinds(shape.layers), None, rngs)
        self.norm = RMSNorm(shape.width, shape.norm_eps)
        self.to_z = Linear(shape.width, packed, rngs, shape.outscale)

    def __call__(self, noisy, levels, a, q=None, apart=None, pasts=None):
        """One pass over T frames, each with the action a_{t-1} that led to it

        Shapes: noisy [B, T, L, C], levels and a [B, T], task q [B] or None, apart [B] (frames that
        are single images) or None -> Pass."""
        tokens = self.tokens(noisy, levels, a, q)
        spatial, agents = self.shape.spatial, 0 if q is None else 1
        is_agent = (jnp.arange(tokens.shape[2]) == spatial) & (q is not None)
        seen = is_agent[:, None] | ~is_agent
        y, pasts = self.transformer(tokens, seen, slice(0, spatial + agents), apart, pasts)
        y = self.norm(y)
        z1 = self.to_z(y[:, :, :spatial]).reshape(noisy.shape)
        return Pass(z1=z1, h=y[:, :, spatial] if agents else None, pasts=pasts)

    def tokens(self, noisy, levels, a, q):
        """The tokens of each frame, [B, T, S, D]"""
        lead = noisy.shape[:2]
        parts = [self.from_z(noisy.reshape(*lead, self.shape.spatial, -1)) + self.places[...]]
        if q is not None:
            parts.append(jnp.broadcast_to(self.task[...][q][:, None], (*lead, self.shape.width)))
        known = jnp.where((a == UNKNOWN)[..., None], 0.0, self.action[...][a])
        exponent = 31 - jax.lax.clz(levels.d)
        shortcut = [self.tau[...][levels.tau], self.d[...][exponent]]
        parts += [self.unknown[...] + known, jnp.concatenate(shortcut, -1)]
        parts.append(jnp.broadcast_to(self.registers[...], (*lead, *self.registers.shape)))
        parts = [part if part.ndim == 4 else part[:, :, None] for part in parts]
        return jnp.concatenate(parts, 2)


class Pass(NamedTuple):
    """What a pass of the dynamics gives: ẑ_1 [B, T, L, C], h [B, T, D] or None, keys and values."""

    z1: jax.Array
    h: jax.Array | None
    pasts: list


def video_loss(dynamics, record, levels, noise, large):
    """Eq. 6-8 | shortcut forcing: ẑ_1 = f(z̃, τ, d, a) towards z_1, or where two half steps lead

    Frames of larger steps than 1/K_max are in the first `large` rows alone.

    Shapes: record and levels [B, T, ...], noise [B, T, L, C] -> losses [B, T], h [B, T, D]."""
    kmax = dynamics.shape.kmax
    noisy = corrupt(record.z, noise, levels.tau / kmax)
    done, target = dynamics(noisy, levels, *record.conditions), record.z
    if large:
        rows, their = jax.tree.map(lambda x: x[:large], (levels, record.conditions))
        half_steps = bootstrap_target(
            lambda noisy, levels: dynamics(noisy, levels, *their).z1, noisy[:large], rows, kmax)
        flow = (rows.d == 1)[..., None, None]
        half_steps = jnp.where(flow, target[:large], half_steps)
        target = jnp.concatenate([half_steps, target[large:]])
    return shortcut_loss(done.z1, target, levels.tau / kmax), done.h


def training_levels(key, record, config, section):
    """Levels for a batch [B, T], the batch with a share of its rows as single images, and how many
    rows have large steps"""
    level_key, alternate_key, image_key = jax.random.split(key, 3)
    dynamics, shape = config.dynamics, record.before.shape
    large = round(dynamics.bootstrap * shape[0])
    levels = sample_levels(level_key, shape, large, section.power, dynamics.kmax)
    levels = alternated(alternate_key, levels, section.alternate,
                        dynamics.kmax - dynamics.context_noise)
    apart = jax.random.uniform(image_key, shape[:1]) < dynamics.images
    before = jnp.where(apart[:, None], UNKNOWN, record.before)
    return levels, record._replace(before=before, apart=apart), large


def dynamics_losses(networks, program, state, record, key):
    """Phase 2 | the video loss on pieces of recorded play, long ones now and then

    -> total, (mean squares, metrics)."""
    config, dynamics = program.config, program.config.dynamics
    if not (dynamics.long_every or dynamics.long_final):
        return piece_losses(networks, program, state, record, key, dynamics.length)
    return jax.lax.cond(is_long(config, state.step["dynamics"]), *(
        partial(piece_losses, networks, program, state, record, length=length)
        for length in (dynamics.long_length, dynamics.length)), key)


def is_long(config, step):
    """Whether the batch of this update is long: each long_every-th one, and all at the end"""
    dynamics, updates = config.dynamics, config.run.dynamics
    final = step >= round((1.0 - dynamics.long_final) * updates)
    every = dynamics.long_every or updates + 1
    return final | (step % every == every - 1)


def piece_losses(networks, program, state, record, key, length):
    """Phase 2 on pieces of one length, as many as make the batch's number of frames"""
    config = program.config
    piece_key, level_key, noise_key = jax.random.split(key, 3)
    batch = max(1, config.dynamics.batch * config.dynamics.length // length)
    record = pieces(piece_key, record, batch, length)._replace(q=None)
    levels, record, large = training_levels(level_key, record, config, config.dynamics)
    noise = jax.random.normal(noise_key, record.z.shape)
    loss, _ = video_loss(networks.dynamics, record, levels, noise, large)
    total, (rms, metrics) = weighted({"video": loss.mean()}, {"video": 1.0}, program, state)
    return total, (rms, metrics | by_kind(loss, levels))


def by_kind(loss, levels):
    """Metrics: the mean loss of the frames with the smallest step, and of the others"""
    flow = levels.d == 1
    return {"losses/flow": jnp.sum(loss * flow) / jnp.maximum(1, flow.sum()),
            "losses/bootstrap": jnp.sum(loss * ~flow) / jnp.maximum(1, (~flow).sum())}


# ---- Generation (Eq. 2) --------------------------------------------------------------------------


def start_memory(dynamics, n):
    """What the dynamics remembers before the first frame of n videos, with the agent's token."""
    shape = dynamics.shape
    tokens = shape.spatial + 1 + 1 + 1 + shape.registers
    pasts = no_past(shape, layer_kinds(shape.layers), n, tokens)
    return Memory(pasts=pasts, h=jnp.zeros((n, shape.width)))


def remember(dynamics, memory, z, a, q, key):
    """Adds frames to the memory, slightly corrupted, as the model met past frames in training

    Shapes: z [N, T, L, C], a [N, T] the actions before them, q [N] -> Memory, h [N, T, D]."""
    kmax, n, t = dynamics.shape.kmax, *a.shape
    tau = jnp.full((n, t), kmax - dynamics.shape.context_noise)
    noisy = corrupt(z, jax.random.normal(key, z.shape), tau / kmax)
    levels = Levels(tau=tau, d=jnp.ones_like(tau))
    done = dynamics(noisy, levels, a, q, pasts=memory.pasts)
    return Memory(pasts=done.pasts, h=done.h[:, -1]), done.h


def dream_frame(dynamics, memory, a, q, k, key):
    """Eq. 2 | K Euler steps from noise to the next frame: x_{τ+d} = x_τ + f(x_τ, τ, d) d, d = 1/K

    The model is told τ before each step. Shapes: a and q [N] -> z [N, L, C].
    Differs: the noise is scaled by `temperature`; the paper's is 1."""
    kmax = dynamics.shape.kmax
    d = jnp.full((len(a), 1), kmax // k)

    def step(noisy, tau):
        levels = Levels(tau=jnp.full_like(d, tau), d=d)
        z1 = dynamics(noisy, levels, a[:, None], q, pasts=memory.pasts).z1
        return euler_step(noisy, velocity(z1, noisy, levels.tau / kmax), d / kmax), None

    noise = dynamics.temperature * jax.random.normal(key, (len(a), 1, *dynamics.z_shape))
    z, _ = jax.lax.scan(step, noise, jnp.arange(0, kmax, kmax // k))
    return z[:, 0]


def dream_step(dynamics, memory, a, q, k, key):
    """The next frame after action a, remembered: -> Memory with h of that frame, z [N, L, C]"""
    frame_key, memory_key = jax.random.split(key)
    z = dream_frame(dynamics, memory, a, q, k, frame_key)
    memory, _ = remember(dynamics, memory, z[:, None], a[:, None], q, memory_key)
    return memory, z


def dream(dynamics, context, actions, k, key):
    """A dream after real frames, with given actions

    Shapes: context is a Record [N, T, ...], actions [N, G] -> z [N, G, L, C]."""
    context_key, key = jax.random.split(key)
    memory = start_memory(dynamics, len(actions))
    memory, _ = remember(dynamics, memory, context.z, context.before, context.q, context_key)

    def step(memory, inputs):
        a, key = inputs
        return dream_step(dynamics, memory, a, context.q, k, key)

    keys = jax.random.split(key, actions.shape[1])
    _, z = jax.lax.scan(step, memory, (actions.T, keys))
    return z.swapaxes(0, 1)


# ---- Behaviour cloning and reward model (Eq. 9) --------------------------------------------------


def make_head(config, outputs, rngs):
    """A small MLP on h, at first giving zeros: [..., D] -> [..., outputs]"""
    units, width = config.agent.units, config.dynamics.width
    mlp = MLP(width, units, 1, config.dynamics.norm_eps, rngs)
    return Head(mlp, units, outputs, rngs, outscale=0.0)


def several(logits, ahead):
    """The output layers of M distances from one vector: [..., M · n] -> [..., M, n]"""
    return logits.reshape(*logits.shape[:-1], ahead, -1)


def ahead_of(x, ahead):
    """x_{t+n} for n = 0 ... M-1: [B, T + M - 1] -> [B, T, M]"""
    length = x.shape[1] - ahead + 1
    return jnp.stack([x[:, n : n + length] for n in range(ahead)], -1)


def behaviour_loss(logits, a):
    """Eq. 9 | -Σ_n ln p(a_{t+n} | h_t), n = 0 ... M-1, without actions that nobody knows

    Shapes: logits [B, T, M, A], a [B, T, M] -> [B, T].
    Differs: Eq. 9 sums to n = L, which would be nine of the paper's L = 8."""
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, jnp.maximum(a, 0)[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(a == UNKNOWN, 0.0, picked), -1)


def reward_loss(logits, r, bins):
    """Eq. 9 | -Σ_n ln p(r_{t+n} | h_t), symexp two-hot: [B, T, M, V], [B, T, M] -> [B, T]"""
    return jnp.sum(twohot_loss(logits, r, bins), -1)


def agent_losses(networks, program, state, record, key):
    """Phase 3, Eq. 9 | the video loss, behaviour cloning and rewards

    -> total, (mean squares, metrics)."""
    config, agent = program.config, program.config.agent
    piece_key, level_key, noise_key = jax.random.split(key, 3)
    longer = pieces(piece_key, record, agent.batch, agent.length + agent.ahead - 1)
    record = first_frames(longer, agent.length)
    levels, record, large = training_levels(level_key, record, config, agent)
    noise = jax.random.normal(noise_key, record.z.shape)
    video, h = video_loss(networks.dynamics, record, levels, noise, large)
    policy = several(networks.policy(h), agent.ahead)
    reward = several(networks.reward(h), agent.ahead)
    video = jnp.where(levels.d > 1, agent.bootstrap_scale, 1.0) * video
    losses = {
        "video": video.mean(),
        "behaviour": behaviour_loss(policy, ahead_of(longer.a, agent.ahead)).mean(),
        "reward": reward_loss(reward, ahead_of(longer.r, agent.ahead),
                              value_bins(agent.bins)).mean(),
    }
    return weighted(losses, dict.fromkeys(losses, 1.0), program, state)


# ---- Imagination training (Eq. 10-11) ------------------------------------------------------------


def first_action(policy, h, ahead):
    """π(a_t | h_t), the first of the M distances: h [..., D] -> Categorical over [..., A]"""
    return Categorical(several(policy(h), ahead)[..., 0, :])


def imagine(networks, context, config, key):
    """Dreams in which the policy acts: one from each context

    Shapes: context is a Record [N, T, ...] -> Dreams with h [N, G+1, D], a [N, G]."""
    imagination, ahead = config.imagination, config.agent.ahead
    context_key, key = jax.random.split(key)
    dynamics, q = networks.dynamics, context.q
    memory = start_memory(dynamics, len(q))
    memory, _ = remember(dynamics, memory, context.z, context.before, q, context_key)

    def step(memory, key):
        action_key, frame_key = jax.random.split(key)
        logits = first_action(networks.policy, memory.h, ahead).logits
        a = jax.random.categorical(action_key, logits)
        after, z = dream_step(dynamics, memory, a, q, imagination.k, frame_key)
        return after, (memory.h, a, z)

    last, outputs = jax.lax.scan(step, memory, jax.random.split(key, imagination.horizon))
    h, a, z = jax.tree.map(lambda x: x.swapaxes(0, 1), outputs)
    return Dreams(h=jnp.concatenate([h, last.h[:, None]], 1), a=a, z=z)


def value_loss(logits, returns, bins):
    """Eq. 10 | -ln p(R^λ_t | h_t), symexp two-hot: logits [N, G, V], returns [N, G] -> [N, G]"""
    return twohot_loss(logits, jax.lax.stop_gradient(returns), bins)


def reverse_kl(policy, prior):
    """Eq. 11 | KL[π ‖ π_prior] = -H[π] - Σ_a π(a) ln π_prior(a): Categoricals -> [...]"""
    return -policy.entropy() - prior.log_prob(jax.nn.softmax(policy.logits))


def pmpo_loss(log_prob, advantage, divergence, alpha, beta):
    """Eq. 11 | (1-α)/|D⁻| Σ_{D⁻} ln π - α/|D⁺| Σ_{D⁺} ln π + β/N Σ KL[π ‖ π_prior]

    D⁺ are the states with A ≥ 0, D⁻ those with A < 0; the sum over an empty set is 0.

    Shapes: log_prob, advantage, divergence [N, G] -> scalar."""
    good = jax.lax.stop_gradient(advantage) >= 0.0
    of_good = jnp.sum(jnp.where(good, log_prob, 0.0)) / jnp.maximum(1, jnp.sum(good))
    of_bad = jnp.sum(jnp.where(good, 0.0, log_prob)) / jnp.maximum(1, jnp.sum(~good))
    return (1.0 - alpha) * of_bad - alpha * of_good + beta * jnp.mean(divergence)


def policy_losses(networks, program, state, record, key):
    """Phase 4, Eq. 10-11 | value and policy in dreams: -> total, (mean squares, metrics)

    Nothing but the two heads has a gradient: dreams are made by `frozen` weights."""
    config, imagination = program.config, program.config.imagination
    piece_key, dream_key = jax.random.split(key)
    frozen = assemble(program, jax.lax.stop_gradient(state.params))
    context = pieces(piece_key, record, imagination.dreams, imagination.context)
    dreams = imagine(frozen, context, config, dream_key)
    bins, ahead = value_bins(config.agent.bins), config.agent.ahead

    r = twohot_mean(several(frozen.reward(dreams.h), ahead)[..., 0, :], bins)
    logits = networks.value(dreams.h)
    values = jax.lax.stop_gradient(twohot_mean(logits, bins))
    c = jnp.full(r.shape, imagination.gamma)  # this world never ends
    returns = lambda_returns(r, c, values, imagination.lambda_)
    advantage = returns - values[:, :-1]

    h = dreams.h[:, :-1]
    policy, prior = (first_action(head, h, ahead) for head in (networks.policy, frozen.prior))
    divergence = reverse_kl(policy, prior)
    log_prob = policy.log_prob(jax.nn.one_hot(dreams.a, policy.logits.shape[-1]))
    pmpo = pmpo_loss(log_prob, advantage, divergence, imagination.alpha, imagination.beta)
    losses = {"value": value_loss(logits[:, :-1], returns, bins).mean(), "policy": pmpo}
    acts = state.step["policy"] >= imagination.value_warmup
    metrics = {f"losses/{name}": loss for name, loss in losses.items()} | {
        "imagination/return": returns.mean(), "imagination/reward": r[:, 1:].mean(),
        "imagination/value": values.mean(), "policy/good": jnp.mean(advantage >= 0.0),
        "policy/entropy": policy.entropy().mean(), "policy/divergence": divergence.mean()}
    return losses["value"] + acts * losses["policy"], (state.rms, metrics)


# ---- Updates -------------------------------------------------------------------------------------

# Phase -> its losses; TRAINED (utils/dreamer4/settings.py) names the networks that it trains.
LOSSES = {"tokenizer": tokenizer_losses, "dynamics": dynamics_losses, "agent": agent_losses,
          "policy": policy_losses}


def assemble(program, params):
    """The Networks with these weights"""
    return Networks(*(nnx.merge(graph, params[name])
                      for name, graph in program.graphs._asdict().items()))


def total_loss(trained, phase, program, state, data, key):
    """The sum of a phase's losses as a function of the weights that it trains: -> total, aux"""
    networks = assemble(program, state.params | trained)
    return LOSSES[phase](networks, program, state, data, key)


def update(program, phase, state, data):
    """One gradient step of a phase: -> TrainState, metrics"""
    key, loss_key = jax.random.split(state.key)
    trained = {name: state.params[name] for name in TRAINED[phase]}
    gradient = jax.grad(total_loss, has_aux=True)
    grads, (rms, metrics) = gradient(trained, phase, program, state, data, loss_key)
    steps, opt_state = program.optimizers[phase].update(grads, state.opt_state[phase], trained)
    state = state._replace(
        params=state.params | optax.apply_updates(trained, steps), rms=rms, key=key,
        opt_state=state.opt_state | {phase: opt_state},
        step=state.step | {phase: state.step[phase] + 1})
    return state, metrics | {"optimizer/grad_norm": optax.tree.norm(grads)}


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def train_chunk(program, phase, updates, state, data):
    """`updates` updates of a phase: -> TrainState, metrics [updates]

    `data` is that of `begin`."""
    def step(state, _):
        return update(program, phase, state, data)

    return jax.lax.scan(step, state, length=updates)


def in_parts(function, *arrays):
    """`function` of N videos, 32 at a time: all at once would take gigabytes"""
    def one(arrays):
        return function(*(x[None] for x in arrays))[0]

    return jax.lax.map(one, arrays, batch_size=32)


def to_record(tokenizer, videos, scale):
    """Videos as the dynamics sees them: latents over their scale, unknown actions left out"""
    a = jnp.where(videos.labelled[:, None], videos.a, UNKNOWN)
    first = jnp.full((len(a), 1), UNKNOWN)
    z = in_parts(lambda x: tokenizer.encode(x)[0], videos.x)
    return Record(z=z / scale, before=jnp.concatenate([first, a[:, :-1]], 1), a=a, r=videos.r,
                  q=videos.q, apart=jnp.zeros(len(a), bool))


def begin(program, phase, state, videos):
    """What a phase needs before its first update, or when a run resumes in it

    -> TrainState, the phase's data: the videos, or their latents. Phase 2 starts by measuring the
    latents' scale, phase 4 by keeping a copy of the policy as its prior."""
    if phase == "tokenizer":
        return state, videos
    record = encoded(program, state.params, videos)
    if phase == "dynamics" and program.config.dynamics.scaled and not state.step[phase]:
        state = state._replace(scale=jnp.std(record.z))
    if phase == "policy" and not state.step[phase]:
        prior = jax.tree.map(jnp.copy, state.params["policy"])
        state = state._replace(params=state.params | {"prior": prior})
    return state, record._replace(z=record.z / state.scale)


@partial(jax.jit, static_argnums=0)
def encoded(program, params, videos):
    """The videos by the frozen tokenizer, latents unscaled: -> Record"""
    return to_record(assemble(program, params).tokenizer, videos, 1.0)


# ---- Playing -------------------------------------------------------------------------------------


class Played(NamedTuple):
    """Episodes in the world: returns and tasks [E]; images [E, T+1, H, W, 3]; actions [E, T]."""

    returns: jax.Array
    x: jax.Array
    a: jax.Array
    q: jax.Array


def play(networks, program, scale, greedy, key):
    """The policy acts in the world, `greedy` or with sampled actions: -> Played

    The action a_t is chosen from h_t, in which the frame of time t is."""
    config, policy, n = program.config, networks.policy, program.config.evaluation.episodes
    world, shape = config.world, config.tokenizer
    start_key, key = jax.random.split(key)
    first = jax.vmap(partial(square.start, world=world))(jax.random.split(start_key, n))
    pasts = no_past(shape, layer_kinds(shape.encoder), n, shape.latents)
    carry = first, pasts, start_memory(networks.dynamics, n), jnp.full(n, UNKNOWN)

    def step(carry, key):
        here, pasts, memory, before = carry
        memory_key, action_key = jax.random.split(key)
        x = square.image(here, world)
        z, pasts = networks.tokenizer.encode(x[:, None], pasts=pasts)
        memory, h = remember(networks.dynamics, memory, z / scale, before[:, None], here.q,
                             memory_key)
        logits = first_action(policy, h[:, 0], config.agent.ahead).logits
        drawn = jax.random.categorical(action_key, logits)
        a = jnp.argmax(logits, -1) if greedy else drawn
        after = square.move(here, a, world)
        return (after, pasts, memory, a), (x, a, square.reward(after, world))

    carry, (x, a, r) = jax.lax.scan(step, carry, jax.random.split(key, config.evaluation.steps))
    x = jnp.concatenate([x, square.image(carry[0], world)[None]])
    return Played(returns=r.sum(0), x=x.swapaxes(0, 1), a=a.T, q=first.q)


# ---- Figures of each phase -----------------------------------------------------------------------


def psnr(x, true):
    """Peak signal-to-noise ratio of images, both from 0 to 1, by their mean squared error: -> dB"""
    return -10.0 * jnp.log10(jnp.mean(jnp.square(jnp.clip(x, 0.0, 1.0) - true)))


def tokenizer_figures(networks, program, state, videos, key):
    """dB of decoded images, and of those from masked patches"""
    config, x, tokenizer = program.config.tokenizer, videos.x, networks.tokenizer
    shape = (*x.shape[:2], (program.config.world.size // config.patch) ** 2)
    hidden = masked_patches(key, shape, config.mask_low, config.mask_high)
    whole = in_parts(lambda x: tokenizer.decode(tokenizer.encode(x)[0]), x)
    masked = in_parts(lambda *seen: tokenizer.decode(tokenizer.encode(*seen)[0]), x, hidden)
    return {"psnr": psnr(whole, x / 255.0), "psnr_masked": psnr(masked, x / 255.0)}


def dynamics_figures(networks, program, state, videos, key):
    """dB of dreamed frames, by the number of steps K; with the true actions and with wrong ones"""
    config, k = program.config.evaluation, program.config.imagination.k
    context, end = config.context, config.context + config.frames
    videos = first_frames(videos, end)
    record = to_record(networks.tokenizer, videos, state.scale)
    actions, true = record.before[:, context:], videos.x[:, context:] / 255.0
    wrong = jax.random.randint(key, actions.shape, 0, len(ACTIONS))
    start = first_frames(record, context)
    images = partial(dreamed_images, networks, state.scale, start)
    dreams = {n: images(actions, n, key) for n in {1, k, program.config.dynamics.kmax}}
    whole = in_parts(networks.tokenizer.decode, record.z * state.scale)[:, context:]
    return {f"psnr_k{n}": psnr(x, true) for n, x in dreams.items()} | {
        f"first_k{k}": psnr(dreams[k][:, 0], true[:, 0]),
        f"last_k{k}": psnr(dreams[k][:, -1], true[:, -1]),
        "ceiling": psnr(whole, true), "wrong_actions": psnr(images(wrong, k, key), true)}


def dreamed_images(networks, scale, context, actions, k, key):
    """What the decoder shows of a dream after a Record of real frames: -> [N, G, H, W, 3]"""
    z = dream(networks.dynamics, context, actions, k, key)
    z = jnp.concatenate([context.z, z], 1) * scale
    return in_parts(networks.tokenizer.decode, z)[:, context.z.shape[1] :]


def agent_figures(networks, program, state, videos, key):
    """How well the recorded actions and rewards are predicted, from past and present alone"""
    agent = program.config.agent
    record = to_record(networks.tokenizer, videos, state.scale)
    memory = start_memory(networks.dynamics, len(record.q))
    _, h = remember(networks.dynamics, memory, record.z, record.before, record.q, key)
    h = h[:, program.config.evaluation.context :]  # where the memory is full
    a, r = (x[:, program.config.evaluation.context :] for x in (videos.a, videos.r))
    log_probs = jax.nn.log_softmax(first_action(networks.policy, h, agent.ahead).logits)
    reward = several(networks.reward(h), agent.ahead)[..., 0, :]
    errors = jnp.abs(twohot_mean(reward, value_bins(agent.bins)) - r)
    picked = jnp.take_along_axis(log_probs, a[..., None], -1)
    return {"nll": -picked.mean(), "accuracy": jnp.mean(jnp.argmax(log_probs, -1) == a),
            "reward_error": errors.mean()} | policy_figures(networks, program, state, videos, key)


def policy_figures(networks, program, state, videos, key):
    """Returns of the policy in the world, with sampled and with greedy actions"""
    return {f"return_{name}": play(networks, program, state.scale, greedy, key).returns.mean()
            for name, greedy in (("sampled", False), ("greedy", True))}


FIGURES = {"tokenizer": tokenizer_figures, "dynamics": dynamics_figures, "agent": agent_figures,
           "policy": policy_figures}


@partial(jax.jit, static_argnums=(0, 1))
def evaluate(program, phase, state, videos, key):
    """The figures of a phase on held-out videos and fresh episodes: -> {name: number}"""
    return FIGURES[phase](assemble(program, state.params), program, state, videos, key)


# ---- Making all of it ----------------------------------------------------------------------------


class AllNetworks(nnx.Module):
    """All networks of the agent, with new weights."""

    def __init__(self, config, rngs):
        agent = config.agent
        self.tokenizer = Tokenizer(config, rngs)
        self.dynamics = Dynamics(config, rngs)
        self.policy = make_head(config, agent.ahead * len(ACTIONS), rngs)
        self.reward = make_head(config, agent.ahead * agent.bins, rngs)
        self.value = make_head(config, agent.bins, rngs)


def build(config):
    """The Program, and the shapes of all weights by network (nothing is allocated)"""
    made = nnx.eval_shape(lambda: AllNetworks(config, nnx.Rngs(0)))
    graphs, shapes = {}, {}
    for name in ("tokenizer", "dynamics", "policy", "reward", "value"):
        graphs[name], shapes[name] = nnx.split(getattr(made, name))
    run = config.run
    sections = {"tokenizer": (config.tokenizer, run.tokenizer),
                "dynamics": (config.dynamics, run.dynamics), "agent": (config.agent, run.agent),
                "policy": (config.imagination, run.policy)}
    optimizers = {phase: optimizer.make(config, section, updates)
                  for phase, (section, updates) in sections.items()}
    graphs = Networks(**graphs, prior=graphs["policy"])
    return Program(config=config, graphs=graphs, optimizers=optimizers), shapes


@partial(jax.jit, static_argnums=0)
def init(program, key):
    """New weights and optimisers: -> TrainState"""
    weights_key, key = jax.random.split(key)
    made = AllNetworks(program.config, nnx.Rngs(weights_key))
    params = {name: nnx.state(getattr(made, name))
              for name in ("tokenizer", "dynamics", "policy", "reward", "value")}
    params["prior"] = jax.tree.map(jnp.copy, params["policy"])
    opt_state = {phase: program.optimizers[phase].init({name: params[name] for name in names})
                 for phase, names in TRAINED.items()}
    rms = {name: jnp.ones(()) for name in ("mse", "perceptual", "video", "behaviour", "reward")}
    return TrainState(params=params, opt_state=opt_state, rms=rms, scale=jnp.ones(()),
                      step={phase: jnp.zeros((), jnp.int32) for phase in PHASES}, key=key)


# ---- Training ------------------------------------------------------------------------------------


def shown_dreams(networks, program, state, videos, key):
    """Videos [N, T, ...] through the tokenizer, and dreamed after evaluation.context frames"""
    n, k = program.config.evaluation.context, program.config.imagination.k
    record = to_record(networks.tokenizer, videos, state.scale)
    decoded, actions = networks.tokenizer.decode(record.z * state.scale), record.before[:, n:]
    dreamed = dreamed_images(networks, state.scale, first_frames(record, n), actions, k, key)
    return decoded, jnp.concatenate([decoded[:, :n], dreamed], 1)


@partial(jax.jit, static_argnums=0)
def shown(program, state, videos, key):
    """Dreams of whole held-out videos, and what the policy and its prior do in the world."""
    networks = assemble(program, state.params)
    decoded, dreamed = shown_dreams(networks, program, state, videos, key)
    before, after = (play(networks._replace(policy=policy), program, state.scale, False, key)
                     for policy in (networks.prior, networks.policy))
    return Shown(context=program.config.evaluation.context, true=videos.x / 255.0,
                 decoded=decoded, dreamed=dreamed, before=before, after=after)


def train(program, session):
    """The host's loop: in each phase train a chunk, evaluate, log, save; at the end show all"""
    config = program.config
    state = session.restore(init(program, session.key(0)))
    videos, held_out = (square.videos(session.key(number), config.world, count) for number, count in
                        ((1, config.world.sequences), (2, config.evaluation.sequences)))
    for phase in session.unfinished():
        state, data = begin(program, phase, state, videos)
        session.begin(baselines(config, phase, held_out, session.key(3)))
        while count := session.next_chunk():
            state, metrics = train_chunk(program, phase, count, state, data)
            evaluates, saves = session.log(count, metrics)
            if evaluates:
                session.evaluated(evaluate(program, phase, state, held_out, session.key(3)))
            if saves:
                session.save(state)
        session.leave(state)
    if not session.stopped():
        some = jax.tree.map(lambda x: x[:SHOWN], held_out)
        session.end(shown(program, state, some, session.key(3)))


def main(argv=None, began=None):
    """The command: read the YAML, build, train, leave a run folder: -> exit status"""
    try:
        command = parse(argv)
        program, shapes = build(command.config)
        session = Session(command, shapes, began)
    except (ValueError, OSError) as error:
        return cli.complain(error, Config.PROGRAM)
    with session:  # a full disk, a nan or a signal ends here; session.status says which
        train(program, session)
    return session.status


if __name__ == "__main__":
    sys.exit(main(began=STARTED))
