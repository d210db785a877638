"""The forms of layers, loops and norms that are fast on the device at hand.

Everywhere else in the project they stand in the plain form. `on_cpu` decides: on a CPU the layers
are swapped, on any other device the loops and the norms. In float32, all forms compute the same
numbers; only the order of sums differs. tests/test_fast_forms.py compares values and gradients,
docs/speed.md has the measurements.

On a CPU, XLA compiles some plain layers badly: it copies weights at every step of a loop, its
convolutions take many times as long as matrix products, and the activations of all imagined states
at once do not fit the cache.

A GPU needs 2 microseconds for a kernel, however small. There an update is limited by their number,
and what was a loop of small kernels is one large one wherever it can be.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

import jaxmodels_nnx as plain

FEW_ROWS = 64  # with fewer, the plain gradient is faster (measured with 16; not with 1,024)
PIXELS = 2**14  # of all images that a convolution processes at once: these fit the cache
STEPS = 16  # of a loop that are one piece on a GPU: what they share is computed once for all
ROW = 1024  # numbers of one tensor that `norms` sums at once on a GPU


def on_cpu():
    """Whether programs are compiled for a CPU."""
    return jax.default_backend() == "cpu"


def swap_in(networks, dtype):
    """Freshly merged networks with the layers that are fast here, swapped in place.

    On a CPU these are the layers of this module. Elsewhere matrix products and what lies between
    them are computed in `dtype`, which a CPU could only emulate. Weights are read here, once: call
    it outside the loop that uses the networks."""
    if not on_cpu():
        return rounded(networks, dtype)
    fast(networks.world)
    networks.actor = TimeFirst(fast(networks.actor))
    networks.critic = TimeFirst(fast(networks.critic))
    return networks


def swap_in_frozen(frozen, dtype):
    """The same for a dreamer.Frozen, whose networks are swapped already: its slow critic."""
    if on_cpu():
        return StepByStep(frozen)
    rounded(frozen.slow_critic, dtype)
    return frozen


def rounded(module, dtype):
    """Round the matrices and biases of a module to a type, in place; norms keep float32.

    A layer computes in the type of its matrix (jaxmodels_nnx.py)."""
    for _, part in list(nnx.iter_modules(module)):
        part.__class__ = ON_A_GPU.get(type(part), type(part))
        if hasattr(part, "kernel"):
            part.kernel = nnx.Param(part.kernel[...].astype(dtype))
            part.bias = nnx.Param(part.bias[...].astype(dtype))
    return module


def fast(module):
    """Replace the layers of a module, and its block GRU `sequence`, by fast forms, in place."""
    for _, part in list(nnx.iter_modules(module)):
        part.__class__ = FAST.get(type(part), type(part))
        if isinstance(getattr(part, "sequence", None), plain.BlockGRU):
            part.sequence = FastBlockGRU(part.sequence)
    return module


# ---- Loops and norms on a GPU --------------------------------------------------------------------


def norms(tensors):
    """The norm ‖x‖ of each tensor of a list, as one array.

    On a GPU, all tensors are cut into rows, and two kernels sum them: a tensor at a time, the 150
    norms of an update would be as many kernels and more."""
    if on_cpu():
        return jnp.stack([jnp.linalg.norm(x.ravel()) for x in tensors])
    rows = [jnp.pad(x.ravel(), (0, -x.size % ROW)).reshape(-1, ROW) for x in tensors]
    owner = np.repeat(np.arange(len(rows)), [len(some) for some in rows])
    squares = jnp.sum(jnp.square(jnp.concatenate(rows)), -1)
    return jnp.sqrt(jnp.sum(squares * (owner == np.arange(len(rows))[:, None]), -1))


def count_at_most(bins, x):
    """How many of the sorted bins are at most x, for each x: [V], [...] -> [...]

    By binary search, which is a loop; on a GPU, a comparison with each is one kernel."""
    return jnp.searchsorted(bins, x, side="right", method="scan" if on_cpu() else "compare_all")


def scan(step, start, inputs, reverse=False):
    """jax.lax.scan(step, start, inputs, reverse=reverse)

    On a GPU 16 steps are one piece, and the gradient is computed in another order: see
    `_scan_backward`."""
    if on_cpu():
        return jax.lax.scan(step, start, inputs, reverse=reverse)
    one = jax.tree.map(lambda x: x[0], inputs)
    step, weights = jax.closure_convert(step, start, one)  # weights: what `step` closes over
    return _scan(step, reverse, weights, start, inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(step, reverse, weights, start, inputs):
    return jax.lax.scan(lambda state, x: step(state, x, *weights), start, inputs,
                        reverse=reverse, unroll=STEPS)


def _scan_forward(step, reverse, weights, start, inputs):
    """The same loop, which keeps the state before each step and nothing else for the gradient."""
    def keep(state, x):
        after, y = step(state, x, *weights)
        return after, (state, y)

    last, (before, outputs) = jax.lax.scan(keep, start, inputs, reverse=reverse, unroll=STEPS)
    return (last, outputs), (weights, before, inputs)


def _scan_backward(step, reverse, kept, slopes):
    """The gradient: first of all states, step by step; then of all else, of all steps at once.

    jax.lax.scan would write what each step needs for its gradient, dozens of small arrays, and add
    every step's gradient of every weight to a sum. Here a step is computed again when its gradient
    is due, and each weight has one large product for all steps."""
    (weights, before, inputs), (last_slope, output_slopes) = kept, slopes

    def back(slope, now):
        state, x, output_slope = now
        _, pull = jax.vjp(lambda state: step(state, x, *weights), state)
        return *pull((slope, output_slope)), slope

    start_slope, after_slopes = jax.lax.scan(
        back, last_slope, (before, inputs, output_slopes), reverse=not reverse, unroll=STEPS)
    steps = jax.vmap(lambda weights, state, x: step(state, x, *weights), (None, 0, 0))
    _, pull = jax.vjp(lambda weights, inputs: steps(weights, before, inputs), weights, inputs)
    weight_slopes, input_slopes = pull((after_slopes, output_slopes))
    return weight_slopes, start_slope, input_slopes


_scan.defvjp(_scan_forward, _scan_backward)


@jax.custom_vjp
def by_rows(x):
    """x, whose gradient lies in memory row after row."""
    return x


def _by_rows_backward(_, slope):
    return (with_layout_constraint(slope, Layout(range(slope.ndim))),)


by_rows.defvjp(lambda x: (x, None), _by_rows_backward)


class NormByRows(plain.RMSNorm):
    """A norm whose gradient is computed along rows.

    XLA lets products write gradients column after column; the sums over rows in the gradient of a
    norm then take a kernel more."""

    def __call__(self, x):
        return by_rows(super().__call__(by_rows(x)))


@jax.custom_vjp
def apart(product):
    """A matrix product that what follows is not part of, where its gradient is not asked for.

    cuBLAS adds a product to what its output holds, so XLA would copy the bias there first, in a
    kernel of its own. Where the gradient is asked for, `_scan_backward` computes the products of
    many steps in one, and this would cost a kernel for each."""
    return jax.lax.optimization_barrier(product)


apart.defvjp(lambda product: (product, None), lambda _, slope: (slope,))


class BiasApart(plain.BlockLinear):
    """Blocks whose bias is added after the product, not by it."""

    def __call__(self, x):
        kernel = self.kernel[...]
        pieces = x.astype(kernel.dtype).reshape(*x.shape[:-1], *kernel.shape[:2])
        y = apart(jnp.einsum("...gi,gio->...go", pieces, kernel))
        return y.reshape(*x.shape[:-1], -1) + self.bias[...]


# ---- Layers on a CPU -----------------------------------------------------------------------------


@jax.custom_vjp
def product(x, kernel):
    """x W. For many rows, the gradient of W is (gᵀ x)ᵀ instead of xᵀ g, three times as fast.

    W is transposed once before the surrounding loop, not at each step of its backward pass.

    Shapes: x [N, I], kernel [I, O] -> [N, O]."""
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel.T)


def _product_backward(residuals, gradient):
    x, transposed = residuals
    if len(x) < FEW_ROWS:
        return gradient @ transposed, x.T @ gradient
    slope = jax.lax.optimization_barrier(gradient.T @ x)  # else XLA undoes the transposition
    return gradient @ transposed, slope.T


product.defvjp(_product_forward, _product_backward)


class FastLinear(plain.Linear):
    """A linear layer on flattened rows: XLA's gradient of a [N, T, I] product is slow."""

    def __call__(self, x):
        flat = product(x.reshape(-1, x.shape[-1]), self.kernel[...]) + self.bias[...]
        return flat.reshape(*x.shape[:-1], -1)


class FastBlockGRU:
    """A block GRU whose matrices are split into blocks once, before the loop."""

    def __init__(self, gru):
        kernel, width = gru.mix.kernel[...], gru.mix.kernel.shape[-1]
        self.gru, self.own, self.gates = gru, list(kernel[:, :width]), list(gru.gates.kernel[...])
        # The inputs that all blocks share are multiplied by one dense matrix.
        self.shared = kernel[:, width:].swapaxes(0, 1).reshape(-1, gru.blocks * width)

    def __call__(self, h, z, a):
        gru, own = self.gru, self._split(h)
        shared = jnp.concatenate([gru.embed_h(h), gru.embed_z(z), gru.embed_a(a)], -1)
        mixed = jnp.concatenate([product(h_g, k) for h_g, k in zip(own, self.own)], -1)
        mixed = mixed + product(shared, self.shared) + gru.mix.bias[...]
        mixed = self._split(jax.nn.silu(gru.norm(mixed)))
        biases = self._split(gru.gates.bias[...])
        gates = [product(m, k) + b for m, k, b in zip(mixed, self.gates, biases)]
        return jnp.concatenate([self._gate(*both) for both in zip(gates, own)], -1)

    def _split(self, x):
        return jnp.split(x, self.gru.blocks, -1)

    def _gate(self, gates, h):
        reset, candidate, update = jnp.split(gates, 3, -1)
        update = jax.nn.sigmoid(update - 1.0)
        return update * jnp.tanh(jax.nn.sigmoid(reset) * candidate) + (1.0 - update) * h


class FastConv(plain.Conv):
    """A convolution as matrix products: the pixels under one kernel row are concatenated.

    If the number of channels shrinks, one product serves all kernel rows, and its parts are shifted
    and added. Otherwise each kernel row has its own product."""

    def __call__(self, x):
        kernel, (height, width) = self.kernel[...], x.shape[1:3]
        size, _, inputs, outputs = kernel.shape
        before, after = (size - 1) // 2, size // 2  # padding that keeps height and width
        padded = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
        wide = jnp.concatenate([padded[:, :, i : i + width] for i in range(size)], -1)
        if outputs < inputs:
            columns = kernel.transpose(1, 2, 0, 3).reshape(size * inputs, size * outputs)
            y = (wide @ columns).reshape(*wide.shape[:3], size, outputs)
            return sum(y[:, i : i + height, :, i] for i in range(size)) + self.bias[...]
        rows = kernel.reshape(size, size * inputs, outputs)
        return sum(wide[:, i : i + height] @ rows[i] for i in range(size)) + self.bias[...]


class FastConvEncoder(plain.ConvEncoder):
    """An encoder that processes a few images at a time."""

    def encode(self, x):
        """[N, H, W, C] -> [N, h, w, channels]"""
        return few_at_a_time(super().encode, x.shape[1:3], x)


class FastConvDecoder(plain.ConvDecoder):
    """A decoder that processes a few images at a time."""

    def decode(self, x):
        """[N, h, w, channels] -> [N, H, W, C]"""
        return few_at_a_time(super().decode, self.stages[0], x)


def few_at_a_time(network, size, x):
    """network(x) of N images, a few at a time where they have many pixels.

    The intermediate arrays of a convolution then stay in the cache; the backward pass recomputes
    them.

    Shapes: x [N, ...] -> [N, ...]; `size` is the images' largest height and width."""
    few = max(1, PIXELS // (size[0] * size[1]))
    if len(x) <= few:
        return network(x)
    # Equal parts where N allows it: a remainder would be compiled separately.
    few = next((n for n in range(few, few // 2, -1) if len(x) % n == 0), few)
    return jax.lax.map(jax.checkpoint(lambda one: network(one[None])[0]), x, batch_size=few)


class TimeFirst:
    """A head that reads imagined states in the memory layout of the scan, time first.

    Shapes: s [N, T, F] -> [N, T, ...]; any other rank is passed on unchanged."""

    def __init__(self, head):
        self.head = head

    def __call__(self, s):
        if s.ndim != 3:
            return self.head(s)
        return _swap(self.head(s.swapaxes(0, 1)))


class StepByStep:
    """Frozen networks that predict step by step, so that activations stay in the cache.

    Shapes: s [N, T, F] -> [N, T] each."""

    def __init__(self, frozen):
        self.frozen, self.networks = frozen, frozen.networks
        self.slow_critic = fast(frozen.slow_critic)

    def predict(self, s, bins):
        """As dreamer.Frozen.predict; the last state alone, so that XLA never joins all."""
        before = jax.lax.map(lambda s: self.frozen.predict(s, bins), s[:, :-1].swapaxes(0, 1))
        last = self.frozen.predict(s[:, -1], bins)
        return jax.tree.map(lambda x, y: jnp.concatenate([x.T, y[:, None]], 1), before, last)


def _swap(tree):
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


FAST = {plain.Linear: FastLinear, plain.Conv: FastConv, plain.ConvEncoder: FastConvEncoder,
        plain.ConvDecoder: FastConvDecoder}
ON_A_GPU = {plain.RMSNorm: NormByRows, plain.BlockLinear: BiasApart}
