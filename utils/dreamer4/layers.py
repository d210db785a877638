"""The efficient transformer of Dreamer 4 (paper, section 3.4): attention over space and over time.

A token is a vector of D numbers; each time step has S of them, so that what flows through the
layers is [B, T, S, D]. A space layer relates the tokens of one time step. A time layer relates one
token with itself at the last `window` time steps, and the layers' keys and values of these steps
are all that generation has to keep: a `Past`.

Letters of the shapes: B sequences, T steps, S tokens of a step, Q of them that ask, D width,
P patches of X numbers, KV heads of keys and values, `...` any leading axes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmodels_nnx import RMSNorm, truncated_normal

FAR = -1e30  # the logit of what is not seen


class Past(NamedTuple):
    """Keys and values of one time layer at the last steps."""

    k: jax.Array  # [B, P, S, KV, D/heads]
    v: jax.Array
    t: jax.Array  # [P] the number of each step, negative where there was none


class Matrix(nnx.Module):
    """y = x W, without a bias.

    Shapes: x [..., I] -> [..., O]."""

    def __init__(self, inputs, outputs, rngs, outscale=1.0):
        self.matrix = nnx.Param(truncated_normal(rngs.params(), (inputs, outputs), outscale))

    def __call__(self, x):
        return x @ self.matrix[...]


class SwiGLU(nnx.Module):
    """(SiLU(x W1) * x W2) W3.

    Shapes: x [..., D] -> [..., D].
    Source: Shazeer 2020."""

    def __init__(self, size, hidden, outscale, rngs):
        self.up = Matrix(size, 2 * hidden, rngs)
        self.down = Matrix(hidden, size, rngs, outscale)

    def __call__(self, x):
        gate, value = jnp.split(self.up(x), 2, -1)
        return self.down(jax.nn.silu(gate) * value)


def rotate(x, t, base):
    """RoPE | pairs (x_i, x_{i+n/2}) turned by the angle t / base^(2i/n): relative places in time

    Shapes: x [B, T, S, heads, n], t [T] -> [B, T, S, heads, n].
    Source: Su et al. 2021."""
    half = x.shape[-1] // 2
    angles = t[:, None].astype(jnp.float32) / base ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None, None], jnp.sin(angles)[:, None, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def soft_cap(logits, cap):
    """cap · tanh(logits / cap): no logit leaves ±cap, and small ones hardly change

    Source: Gemma 2."""
    return cap * jnp.tanh(logits / cap)


class Attention(nnx.Module):
    """What both kinds of attention share: grouped queries, QKNorm and the soft cap.

    `shape` is a section of the configuration that describes a transformer; `outscale` that of the
    projection back into the residual stream."""

    def __init__(self, shape, outscale, rngs):
        self.shape, self.head = shape, shape.width // shape.heads
        self.query = Matrix(shape.width, shape.heads * self.head, rngs)
        self.key = Matrix(shape.width, shape.kv_heads * self.head, rngs)
        self.value = Matrix(shape.width, shape.kv_heads * self.head, rngs)
        self.out = Matrix(shape.heads * self.head, shape.width, rngs, outscale)
        self.query_norm = RMSNorm(self.head, shape.norm_eps)
        self.key_norm = RMSNorm(self.head, shape.norm_eps)

    def project(self, asking, x):
        """Queries of the tokens `asking`, keys and values of the tokens `x`: [..., heads, n]"""
        q, k, v = (part(y).reshape(*y.shape[:-1], -1, self.head) for part, y in (
            (self.query, asking), (self.key, x), (self.value, x)))
        return self.query_norm(q), self.key_norm(k), v

    def weigh(self, q, k, v, seen, axes):
        """softmax(cap(q·k / √n)) v, where `seen`: -> [B, T, Q, D]

        `axes` names the axes of q, of k and of the logits, b t s for B T S; the groups are added
        here."""
        of_q, of_k, of_logits = axes
        q = q.reshape(*q.shape[:-2], k.shape[-2], -1, self.head)
        logits = jnp.einsum(f"{of_q}kgn,{of_k}kn->{of_logits}", q, k) / self.head**0.5
        weights = jax.nn.softmax(jnp.where(seen, soft_cap(logits, self.shape.cap), FAR))
        y = jnp.einsum(f"{of_logits},{of_k}kn->{of_q}kgn", weights, v)
        return self.out(y.reshape(*y.shape[:3], -1))


class SpaceAttention(Attention):
    """Attention among the tokens of one time step.

    Shapes: asking [B, T, Q, D], x [B, T, S, D], seen [Q, S] what each asking token may see
    -> [B, T, Q, D]."""

    def __call__(self, asking, x, seen):
        q, k, v = self.project(asking, x)
        return self.weigh(q, k, v, seen, ("btq", "bts", "btkgqs"))


class TimeAttention(Attention):
    """Attention of each token to itself at the last `window` steps, this one included.

    Shapes: x [B, T, S, D]; apart [B], the sequences whose steps see only themselves; a Past or None
    -> [B, T, S, D], the Past of the last window - 1 steps."""

    def __call__(self, x, apart=None, past=None):
        q, k, v = self.project(x, x)
        first = 0 if past is None else past.t[-1] + 1
        t = first + jnp.arange(x.shape[1])
        now = Past(rotate(k, t, self.shape.rope), v, t)
        if past is not None:
            now = Past(*(jnp.concatenate([old, new], axis)
                         for old, new, axis in zip(past, now, (1, 1, 0))))
        age = t[:, None] - now.t
        seen = ((age >= 0) & (age < self.shape.window) & (now.t >= 0))[None]
        if apart is not None:
            seen = seen & ~(apart[:, None, None] & (age > 0))
        y = self.weigh(rotate(q, t, self.shape.rope), now.k, now.v, seen[:, None, None, None],
                       ("bts", "bus", "bskgtu"))
        keep = self.shape.window - 1  # what the next step can still see
        return y, Past(now.k[:, -keep:], now.v[:, -keep:], now.t[-keep:])


class Block(nnx.Module):
    """Attention and SwiGLU, each behind an RMS norm and added to its input.

    Shapes: x [B, T, S, D] -> [B, T, Q, D] and, over time, a Past."""

    def __init__(self, shape, kind, outscale, rngs):
        self.over_time = kind == "time"
        attention = TimeAttention if self.over_time else SpaceAttention
        self.attention = attention(shape, outscale, rngs)
        self.mlp = SwiGLU(shape.width, shape.hidden, outscale, rngs)
        self.norm_attention = RMSNorm(shape.width, shape.norm_eps)
        self.norm_mlp = RMSNorm(shape.width, shape.norm_eps)

    def space(self, x, seen, read):
        """The block over space, for the tokens of the slice `read`: -> [B, T, Q, D]"""
        normed = self.norm_attention(x)
        y = x[:, :, read] + self.attention(normed[:, :, read], normed, seen[read])
        return y + self.mlp(self.norm_mlp(y))

    def time(self, x, apart, past):
        """The block over time: -> [B, T, S, D], Past"""
        y, past = self.attention(self.norm_attention(x), apart, past)
        return x + y + self.mlp(self.norm_mlp(x + y)), past


class Transformer(nnx.Module):
    """A chain of blocks, each of a kind: "space" or "time".

    `timed` is how many tokens the time layers work on, the first ones (None: all); `read` is the
    slice of those that are read afterwards: a space layer at the end computes no others.

    Shapes: x [B, T, S, D], seen [S, S], apart [B] or None, pasts a list or None
    -> [B, T, Q, D], list of Past, one for each time layer."""

    def __init__(self, shape, kinds, timed, rngs):
        self.timed = timed
        outscale = (2 * len(kinds)) ** -0.5  # the variance of a sum of 2 · layers terms stays 1
        self.blocks = nnx.List([Block(shape, kind, outscale, rngs) for kind in kinds])

    def __call__(self, x, seen, read, apart=None, pasts=None):
        everything, after = slice(None), []
        for block in self.blocks:
            last = block is self.blocks[-1]
            if block.over_time:
                past = pasts[len(after)] if pasts else None
                y, past = block.time(x[:, :, : self.timed], apart, past)
                x = jnp.concatenate([y, x[:, :, y.shape[2] :]], 2)
                x = x[:, :, read] if last else x
                after.append(past)
            else:
                x = block.space(x, seen, read if last else everything)
        return x, after


def no_past(shape, kinds, batch, tokens):
    """The Past of each time layer where there is none: what generation starts from."""
    size = (batch, shape.window - 1, tokens, shape.kv_heads, shape.width // shape.heads)
    empty = Past(jnp.zeros(size), jnp.zeros(size), jnp.arange(1 - shape.window, 0))
    return [empty] * kinds.count("time")


def patchify(x, side):
    """Images as patches, row by row: [..., H, W, 3] -> [..., P, side · side · 3]"""
    *lead, height, width, colours = x.shape
    x = x.reshape(*lead, height // side, side, width // side, side, colours)
    return jnp.moveaxis(x, -4, -3).reshape(*lead, -1, side * side * colours)


def unpatchify(patches, side, height):
    """The inverse of `patchify` for images `height` pixels high: [..., P, X] -> [..., H, W, 3]"""
    *lead, count, _ = patches.shape
    rows = height // side
    x = patches.reshape(*lead, rows, count // rows, side, side, 3)
    return jnp.moveaxis(x, -3, -4).reshape(*lead, height, -1, 3)


def normal(rngs, *shape):
    """Learned embeddings, at first of a unit normal distribution."""
    return nnx.Param(jax.random.normal(rngs.params(), shape))


def with_first(embeddings, tokens):
    """Learned tokens [n, D] in front of each frame's: [B, T, S, D] -> [B, T, n + S, D]"""
    learned = jnp.broadcast_to(embeddings, (*tokens.shape[:2], *embeddings.shape))
    return jnp.concatenate([learned, tokens], 2)
