"""Networks, independent of reinforcement learning: layers, MLP, block GRU, encoders, decoders.

Each layer is written in its plain form. dreamer.py replaces some of them by forms that compute the
same numbers faster on a CPU (utils/core/fast_forms.py). A layer computes in the type of its matrix,
which is float32 or bfloat16; norms and the outputs of heads are float32.

Layers hold parameters only (no random streams, no averages), so a merged module can be used inside
`jax.jit` and `jax.lax.scan`. Sizes, initial values and the order of operations follow the official
DreamerV3 code; tests/test_golden.py compares both.

Letters of the shapes: N any batch, I inputs, O outputs, D recurrent width, G blocks, [H, W, C] an
image, `...` any leading axes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

TRUNCATED_STD = 0.87962566  # standard deviation of a unit normal truncated to [-2, 2]


def truncated_normal(key, shape, outscale):
    """Initial weights: normal, truncated at 2 sigmas, standard deviation outscale / √fan_in.

    Shapes: `shape` is [..., O]; fan_in is the product of all axes but the last, so that of a
    block-linear kernel [G, I/G, O/G] is the whole input width.
    Source: the official code's `trunc_normal_in`."""
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    weights = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    return weights * (outscale / (TRUNCATED_STD * fan_in**0.5))


class Linear(nnx.Module):
    """y = x W + b.

    Shapes: x [..., I] -> [..., O]."""

    def __init__(self, inputs, outputs, rngs, outscale=1.0):
        self.kernel = nnx.Param(truncated_normal(rngs.params(), (inputs, outputs), outscale))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x):
        kernel = self.kernel[...]
        return x.astype(kernel.dtype) @ kernel + self.bias[...]


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + ε) · scale, over the last axis; ε is inside the root.

    Shapes: x [..., O] -> [..., O]."""

    def __init__(self, size, eps):
        self.scale = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x):
        y = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        return (y * jax.lax.rsqrt(mean_square + self.eps) * self.scale[...]).astype(x.dtype)


class Hidden(nnx.Module):
    """The hidden layer of every network here: linear, RMS norm, SiLU.

    Shapes: x [..., I] -> [..., O]."""

    def __init__(self, inputs, outputs, eps, rngs):
        self.linear = Linear(inputs, outputs, rngs)
        self.norm = RMSNorm(outputs, eps)

    def __call__(self, x):
        return jax.nn.silu(self.norm(self.linear(x)))


class MLP(nnx.Module):
    """A chain of hidden layers.

    Shapes: x [..., I] -> [..., units]."""

    def __init__(self, inputs, units, layers, eps, rngs):
        widths = [inputs] + [units] * layers
        self.layers = nnx.List([Hidden(i, o, eps, rngs) for i, o in zip(widths, widths[1:])])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Head(nnx.Module):
    """An MLP and a linear output layer.

    Shapes: x [..., I] -> [..., O]."""

    def __init__(self, mlp, units, outputs, rngs, outscale=1.0):
        self.mlp = mlp
        self.out = Linear(units, outputs, rngs, outscale)

    def __call__(self, x):
        return self.out(self.mlp(x)).astype(jnp.float32)


class BlockLinear(nnx.Module):
    """A linear layer with a block-diagonal matrix: kernel[g] multiplies only part g of x.

    Shapes: x [..., I] -> [..., O]; kernel [G, I/G, O/G]."""

    def __init__(self, inputs, outputs, blocks, rngs):
        shape = (blocks, inputs // blocks, outputs // blocks)
        self.kernel = nnx.Param(truncated_normal(rngs.params(), shape, 1.0))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x):
        kernel = self.kernel[...]
        pieces = x.astype(kernel.dtype).reshape(*x.shape[:-1], *kernel.shape[:2])
        y = jnp.einsum("...gi,gio->...go", pieces, kernel)
        return y.reshape(*x.shape[:-1], -1) + self.bias[...]


class BlockGRU(nnx.Module):
    """A GRU with block-diagonal recurrent matrices; its inputs are its own state, z and a.

    Every block receives the embeddings of h, z and a; only block g also receives part g of h
    itself.

    Shapes: h [N, D], z [N, Z], a [N, A] -> [N, D].
    Source: the official code's `RSSM._core`, golden file 3_rssm_blocks4."""

    def __init__(self, sizes, hidden, blocks, eps, rngs):
        deter, z_size, a_size = sizes
        self.blocks = blocks
        self.embed_h = Hidden(deter, hidden, eps, rngs)
        self.embed_z = Hidden(z_size, hidden, eps, rngs)
        self.embed_a = Hidden(a_size, hidden, eps, rngs)
        self.mix = BlockLinear(deter + 3 * blocks * hidden, deter, blocks, rngs)
        self.norm = RMSNorm(deter, eps)
        self.gates = BlockLinear(deter, 3 * deter, blocks, rngs)

    def __call__(self, h, z, a):
        shared = jnp.concatenate([self.embed_h(h), self.embed_z(z), self.embed_a(a)], -1)
        own = h.reshape(len(h), self.blocks, -1)
        shared = jnp.broadcast_to(shared[:, None], (len(h), self.blocks, shared.shape[-1]))
        x = jnp.concatenate([own, shared], -1).reshape(len(h), -1)
        x = jax.nn.silu(self.norm(self.mix(x)))
        gates = self.gates(x).reshape(len(h), self.blocks, -1)
        reset, candidate, update = jnp.split(gates, 3, -1)
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        update = jax.nn.sigmoid(update - 1.0)  # initially, most of the state is kept
        return (update * candidate + (1.0 - update) * own).reshape(h.shape)


class Conv(nnx.Module):
    """A convolution of stride 1 that keeps height and width.

    Shapes: x [N, H, W, I] -> [N, H, W, O]; kernel [k, k, I, O]."""

    def __init__(self, inputs, outputs, size, rngs):
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(truncated_normal(rngs.params(), shape, 1.0))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x):
        layout = ("NHWC", "HWIO", "NHWC")
        kernel = self.kernel[...]
        y = jax.lax.conv_general_dilated(x.astype(kernel.dtype), kernel, (1, 1), "SAME",
                                         dimension_numbers=layout)
        return y + self.bias[...]


def max_pool(x):
    """The maximum of each 2 x 2 pixels; an odd last row or column is pooled alone.

    Shapes: x [N, H, W, C] -> [N, ⌈H/2⌉, ⌈W/2⌉, C]."""
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "SAME")


def upsample(x, height, width):
    """Repeat each pixel 2 x 2 times, cropped to the size before `max_pool`.

    Shapes: x [N, ⌈H/2⌉, ⌈W/2⌉, C] -> [N, H, W, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


def image_sizes(shape, multipliers, seed):
    """Height and width before each halving and after the last one, largest first.

    An image is halved while both sides stay at least `seed` pixels, at least once and at most
    `len(multipliers)` times: with seed 4, 64x64 gives 64, 32, 16, 8, 4 and 10x10 gives 10, 5."""
    sizes = [tuple(shape[:2])]
    while len(sizes) <= len(multipliers) and (len(sizes) == 1 or min(sizes[-1]) >= 2 * seed):
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class ConvEncoder(nnx.Module):
    """Image to features; each stage is convolution, 2 x 2 max-pool, RMS norm over channels, SiLU.

    Shapes: x [..., H, W, C] in [-0.5, 0.5] -> [..., h * w * channels].
    Source: golden file 10_encoder."""

    def __init__(self, shape, channels, kernel, eps, rngs):
        widths = [shape[-1], *channels]
        self.convs = nnx.List([Conv(i, o, kernel, rngs) for i, o in zip(widths, widths[1:])])
        self.norms = nnx.List([RMSNorm(o, eps) for o in channels])

    def __call__(self, x):
        lead, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        return self.encode(x).reshape(*lead, -1)

    def encode(self, x):
        """Apply all stages: [N, H, W, C] -> [N, h, w, channels]"""
        for conv, norm in zip(self.convs, self.norms):
            x = jax.nn.silu(norm(max_pool(conv(x))))
        return x


class ConvDecoder(nnx.Module):
    """Features to an image: a seed map from h and z; each stage is upsampling and a convolution.

    The seed map is the sum of a block-linear layer of h and two layers of z.

    Shapes: h [..., D], z [..., Z] -> [..., H, W, C] in (0, 1).
    Source: golden file 10b_decoder."""

    def __init__(self, sizes, image, channels, layer, rngs):
        """`sizes` (D, Z, units), `image` (sizes per stage, C), `layer` (kernel, blocks, eps)."""
        deter, z_size, units = sizes
        self.stages, colours = image
        kernel, self.blocks, eps = layer
        self.seed = (*self.stages[-1], channels[-1])
        area = self.seed[0] * self.seed[1] * self.seed[2]
        self.from_h = BlockLinear(deter, area, self.blocks, rngs)
        self.from_z = Head(MLP(z_size, 2 * units, 1, eps, rngs), 2 * units, area, rngs)
        self.norm = RMSNorm(channels[-1], eps)
        widths = [*reversed(channels), colours]
        self.convs = nnx.List([Conv(i, o, kernel, rngs) for i, o in zip(widths, widths[1:])])
        self.norms = nnx.List([RMSNorm(o, eps) for o in widths[1:-1]])

    def __call__(self, h, z):
        lead, h, z = h.shape[:-1], h.reshape(-1, h.shape[-1]), z.reshape(-1, z.shape[-1])
        x = self.decode(self._seed_map(h, z))
        return x.reshape(*lead, *x.shape[1:])

    def _seed_map(self, h, z):
        """[N, D], [N, Z] -> the seed map [N, h, w, channels]"""
        height, width, depth = self.seed
        pieces = self.from_h(h).reshape(-1, self.blocks, height, width, depth // self.blocks)
        seed = pieces.transpose(0, 2, 3, 1, 4).reshape(-1, *self.seed)
        return jax.nn.silu(self.norm(seed + self.from_z(z).reshape(-1, *self.seed)))

    def decode(self, x):
        """Apply all stages to seed maps: [N, h, w, channels] -> [N, H, W, C]"""
        for conv, norm, size in zip(self.convs, self.norms, self.stages[-2:0:-1]):
            x = jax.nn.silu(norm(conv(upsample(x, *size))))
        x = self.convs[-1](upsample(x, *self.stages[0]))
        return jax.nn.sigmoid(x.astype(jnp.float32))


class VectorDecoder(nnx.Module):
    """Features to a vector: an MLP on [h, z].

    Shapes: h [..., D], z [..., Z] -> [..., O]."""

    def __init__(self, head):
        self.head = head

    def __call__(self, h, z):
        return self.head(jnp.concatenate([h, z], -1))


def make_encoder(model, shape, is_image, rngs):
    """The encoder for observations of this shape, and the width of its tokens."""
    if not is_image:
        layers, units = model.encoder_layers, model.units
        return MLP(shape[0], units, layers, model.norm_eps, rngs), units
    stages, channels = _stages(model, shape)
    encoder = ConvEncoder(shape, channels, model.kernel, model.norm_eps, rngs)
    return encoder, stages[-1][0] * stages[-1][1] * channels[-1]


def make_decoder(model, shape, is_image, rngs):
    """The decoder for observations of this shape: (h [..., D], z [..., Z]) -> [..., *shape]."""
    z_size, units, eps = model.z_size, model.units, model.norm_eps
    if not is_image:
        mlp = MLP(model.s_size, units, model.decoder_layers, eps, rngs)
        return VectorDecoder(Head(mlp, units, shape[0], rngs))
    stages, channels = _stages(model, shape)
    layer, image = (model.kernel, model.blocks, eps), (tuple(stages), shape[-1])
    return ConvDecoder((model.deter, z_size, units), image, channels, layer, rngs)


def _stages(model, shape):
    """The image size per stage and the channels of each convolution."""
    stages = image_sizes(shape, model.multipliers, model.seed_pixels)
    channels = tuple(model.depth * m for m in model.multipliers[: len(stages) - 1])
    if channels[-1] % model.blocks:
        raise ValueError(
            f"model.depth: expected {channels[-1] // model.depth} × model.depth to be a multiple "
            f"of model.blocks = {model.blocks}, found {model.depth}")
    return stages, channels


class Categorical(NamedTuple):
    """A distribution over A classes; samples are one-hot."""

    logits: jax.Array  # [..., A]

    def sample(self, key):
        """-> one-hot [..., A]."""
        return jax.nn.one_hot(jax.random.categorical(key, self.logits), self.logits.shape[-1])

    def log_prob(self, a):
        """ln π(a): a [..., A] -> [...]."""
        return jnp.sum(a * jax.nn.log_softmax(self.logits), -1)

    def entropy(self):
        """In nats, -> [...]."""
        return -jnp.sum(jax.nn.softmax(self.logits) * jax.nn.log_softmax(self.logits), -1)


class BoundedNormal(NamedTuple):
    """Independent normals over A numbers; samples are not clipped."""

    mean: jax.Array  # [..., A], within (-1, 1)
    std: jax.Array  # [..., A]

    def sample(self, key):
        """-> [..., A], unclipped, without gradient."""
        noise = jax.random.normal(key, self.mean.shape)
        return jax.lax.stop_gradient(self.mean + self.std * noise)

    def log_prob(self, a):
        """Log density summed over the A numbers: a [..., A] -> [...]."""
        error = (a - self.mean) / self.std
        return jnp.sum(-0.5 * jnp.square(error) - jnp.log(self.std) - 0.5 * jnp.log(2 * jnp.pi), -1)

    def entropy(self):
        """In nats, summed over the A numbers, -> [...]."""
        return jnp.sum(jnp.log(self.std) + 0.5 * jnp.log(2 * jnp.pi * jnp.e), -1)


def bounded_normal(mean, std, model):
    """A BoundedNormal with mean tanh(·) and a standard deviation squashed to min_std ... max_std

    Shapes: network outputs mean, std [..., A].
    Source: official code, `bounded_normal`; golden file 7_bounded_normal."""
    spread = model.max_std - model.min_std
    return BoundedNormal(
        jnp.tanh(mean), spread * jax.nn.sigmoid(std + model.std_bias) + model.min_std
    )
