"""The forms of layers that are fast on a CPU compute what the plain ones do, and its gradients."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose

import dreamer
import jaxmodels_nnx as models
from utils.core import config, cpu_layers
from utils.core.devices import on_one_device
from utils.core.settings import Config

SETTINGS = config.load("dreamer.yaml", Config, ["debug"], ["learning.free_bits=0", "model.bins=41"])
MODEL, KEY = SETTINGS.model, jax.random.key(0)
CLOSE = partial(assert_allclose, rtol=2e-4, atol=2e-5)


def rngs():
    """Fresh randomness for initial weights, always the same."""
    return nnx.Rngs(0)


def compared(make_layer, *inputs):
    """Value and gradients (of weights and inputs) of a layer in both forms agree."""
    graph, weights = nnx.split(make_layer())
    arguments = tuple(range(1 + len(inputs)))
    plain, fast = (jax.value_and_grad(partial(_error, graph, form), arguments, has_aux=True)(
        weights, *inputs) for form in (lambda layer: layer, cpu_layers.fast))
    jax.tree.map(CLOSE, fast, plain)


def _error(graph, form, weights, *inputs):
    y = form(nnx.merge(graph, weights))(*inputs)
    return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape) / y.size), y


@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 5), (80, 5), (9, 9, 5)])
def test_a_linear_layer(shape):
    compared(lambda: models.Linear(5, 4, rngs()), jax.random.normal(KEY, shape))


@pytest.mark.parametrize("inputs, outputs", [(3, 4), (4, 3)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_convolution(size, inputs, outputs):
    compared(lambda: models.Conv(inputs, outputs, size, rngs()),
             jax.random.normal(KEY, (2, 6, 7, inputs)))


class Sequence(nnx.Module):
    """A block GRU where a world model has it."""

    def __init__(self):
        self.sequence = models.BlockGRU((16, 6, 2), 5, 4, 1e-4, rngs())

    def __call__(self, h, z, a):
        return self.sequence(h, z, a)


@pytest.mark.parametrize("rows", [3, 80])
def test_a_block_gru(rows):
    compared(Sequence, *(jax.random.normal(KEY, (rows, size)) for size in (16, 6, 2)))


def networks_of(x_shape, discrete):
    """(program, weights) of a small agent for such observations, no weight of it zero."""
    world = SimpleNamespace(x_shape=x_shape, is_image=len(x_shape) == 3, action_size=3,
                            discrete=discrete)
    program, shapes = dreamer.build(SETTINGS, world)
    random = np.random.default_rng(0)
    return program, jax.tree.map(
        lambda leaf: jnp.array(random.normal(0.0, 0.3, leaf.shape), leaf.dtype), shapes)


def random_batch(x_shape, pixels):
    """Rows [3, 6] in which an episode ends and another begins."""
    random, shape, flags = np.random.default_rng(0), (3, 6), np.zeros((3, 3, 6), bool)
    flags[0, 0, 3] = flags[1, 0, 2] = flags[2, 0, 2] = True
    x = random.integers(0, 256, (*shape, *x_shape)).astype(np.uint8)
    return dreamer.Transition(
        x=x if pixels else random.normal(size=(*shape, *x_shape)).astype(np.float32),
        r=random.normal(size=shape).astype(np.float32),
        is_first=flags[0], is_last=flags[1], is_terminal=flags[2],
        a=np.eye(3, dtype=np.float32)[random.integers(3, size=shape)],
        h=random.normal(size=(*shape, MODEL.deter)).astype(np.float32),
        z=random.integers(MODEL.classes, size=(*shape, MODEL.latents)).astype(np.uint8))


@pytest.mark.parametrize("x_shape, discrete", [((4,), True), ((4,), False), ((10, 10, 3), True)])
def test_every_loss_and_all_gradients_of_a_whole_update(x_shape, discrete):
    program, params = networks_of(x_shape, discrete)
    batch = random_batch(x_shape, len(x_shape) == 3)
    state = dreamer.AgentState(params, params["critic"], None, jnp.array([-1.0, 2.0]), 0)

    fast, plain = (_losses(replace(program, on_cpu=on_cpu), params, state, batch)
                   for on_cpu in (True, False))
    np.testing.assert_array_equal(fast[1].latent.z, plain[1].latent.z)  # the same draws
    jax.tree.map(partial(assert_allclose, rtol=2e-3, atol=2e-4), fast, plain)


def _losses(program, params, state, batch):
    total = on_one_device(lambda params: dreamer.total_loss(params, program, state, batch, KEY))
    (total, aux), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return total, aux, slopes


def test_on_a_cpu_the_program_takes_the_fast_forms_and_elsewhere_the_plain_ones(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    networks, frozen = _assembled()
    assert isinstance(networks.world.sequence, cpu_layers.FastBlockGRU)
    assert isinstance(networks.world.reward.out, cpu_layers.FastLinear)
    assert isinstance(networks.world.encoder.convs[0], cpu_layers.FastConv)
    assert isinstance(networks.critic, cpu_layers.TimeFirst)
    assert isinstance(frozen, cpu_layers.StepByStep)
    assert isinstance(frozen.slow_critic.out, cpu_layers.FastLinear)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    networks, frozen = _assembled()
    parts = [part for _, part in nnx.iter_modules(networks)]
    assert {type(part).__module__ for part in parts} <= {
        "dreamer", "jaxmodels_nnx", "flax.nnx.helpers", "flax.nnx.nn.stochastic"}
    assert isinstance(networks.critic, dreamer.Critic) and isinstance(frozen, dreamer.Frozen)


def _assembled():
    """Networks for images of this backend, as trained and as frozen."""
    program, params = networks_of((10, 10, 3), True)
    return (dreamer.assemble(program, params),
            dreamer.freeze(program, params, params["critic"]))


def error_of_images(weights, networks, x, h, z):
    """A number that every token and pixel changes, and what they are."""
    encoder, decoder = map(cpu_layers.fast, nnx.merge(networks, weights))
    tokens, image = encoder(x), decoder(h, z)
    return jnp.sum(tokens**2) + jnp.sum((image - x) ** 2), (tokens, image)


def test_many_images_are_worked_on_a_few_at_a_time_with_the_same_result(monkeypatch):
    shape = (16, 12, 2)
    encoder, _ = models.make_encoder(MODEL, shape, True, rngs())
    decoder = models.make_decoder(MODEL, shape, True, rngs())
    networks, weights = nnx.split(nnx.List([encoder, decoder]))
    inputs = [jax.random.uniform(KEY, (5, *own)) for own in (shape, (MODEL.deter,), (16,))]
    function = partial(jax.value_and_grad(error_of_images, has_aux=True), weights, networks)
    found = []
    for images in (5, 2):  # all at once; two, two, and the one that is left
        monkeypatch.setattr(cpu_layers, "PIXELS", images * 16 * 12)
        lowered = jax.jit(partial(function)).lower(*inputs)  # a new function: nothing is reused
        text = lowered.as_text()  # loops, and what is computed again
        counts = [text.count(word) for word in ("stablehlo.while", "optimization_barrier")]
        found.append((counts, lowered.compile()(*inputs)))
    (before, once), (after, few) = found
    assert before[0] == 0 < after[0] and before[1] < after[1]
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-6), once, few)
