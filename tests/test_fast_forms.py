"""The forms that are fast on a CPU or a GPU compute what the plain ones do, and its gradients."""

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
from utils.core import config, fast_forms
from utils.core.devices import on_one_device
from utils.core.settings import Config


def settings(*sets):
    """Numbers of the smallest agent, with some changed."""
    sets = ["learning.free_bits=0", "model.bins=41", *sets]
    return config.load("dreamer.yaml", Config, ["debug"], sets)


MODEL, KEY = settings().model, jax.random.key(0)
CLOSE = partial(assert_allclose, rtol=2e-4, atol=2e-5)


def rngs():
    """Fresh randomness for initial weights, always the same."""
    return nnx.Rngs(0)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The forms for a GPU, computed on this CPU."""
    monkeypatch.setattr(fast_forms, "on_cpu", lambda: False)


FORMS = {"cpu": fast_forms.fast, "gpu": partial(fast_forms.rounded, dtype="float32")}
each_form = pytest.mark.parametrize("form", FORMS)


def compared(form, make_layer, *inputs):
    """Value and gradients (of weights and inputs) of a layer in this form and plain agree."""
    graph, weights = nnx.split(make_layer())
    arguments = tuple(range(1 + len(inputs)))
    plain, fast = (jax.jit(jax.value_and_grad(partial(_error, graph, form), arguments,
                                              has_aux=True))(weights, *inputs)
                   for form in (lambda layer: layer, FORMS[form]))
    jax.tree.map(CLOSE, fast, plain)


def _error(graph, form, weights, *inputs):
    y = form(nnx.merge(graph, weights))(*inputs)
    return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape) / y.size), y


@each_form
@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 5), (80, 5), (9, 9, 5)])
def test_a_linear_layer(shape, form):
    compared(form, lambda: models.Linear(5, 4, rngs()), jax.random.normal(KEY, shape))


@each_form
@pytest.mark.parametrize("inputs, outputs", [(3, 4), (4, 3)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_convolution(size, inputs, outputs, form):
    compared(form, lambda: models.Conv(inputs, outputs, size, rngs()),
             jax.random.normal(KEY, (2, 6, 7, inputs)))


class Sequence(nnx.Module):
    """A block GRU where a world model has it."""

    def __init__(self):
        self.sequence = models.BlockGRU((16, 6, 2), 5, 4, 1e-4, rngs())

    def __call__(self, h, z, a):
        return self.sequence(h, z, a)


@each_form
@pytest.mark.parametrize("rows", [3, 80])
def test_a_block_gru(rows, form):
    compared(form, Sequence, *(jax.random.normal(KEY, (rows, size)) for size in (16, 6, 2)))


def test_a_bias_is_apart_from_its_product_only_where_no_gradient_is_asked_for():
    layer = fast_forms.rounded(models.BlockLinear(8, 4, 2, rngs()), "float32")
    total = lambda x: layer(x).sum()  # noqa: E731
    forwards, backwards = (str(jax.make_jaxpr(function)(jnp.ones((3, 8))))
                           for function in (total, jax.grad(total)))
    assert "optimization_barrier" in forwards and "optimization_barrier" not in backwards


def networks_of(x_shape, discrete, *sets):
    """(program, weights) of a small agent for such observations, no weight of it zero."""
    world = SimpleNamespace(x_shape=x_shape, is_image=len(x_shape) == 3, action_size=3,
                            discrete=discrete)
    program, shapes = dreamer.build(settings(*sets), world)
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


# A vector and classes are in the loop below: the fast group has here what that has not.
@pytest.mark.parametrize("x_shape, discrete", [((10, 10, 3), False), *(
    pytest.param(*kind, marks=pytest.mark.slow)
    for kind in (((4,), True), ((4,), False), ((10, 10, 3), True)))])
def test_every_loss_and_all_gradients_of_a_whole_update(x_shape, discrete, monkeypatch):
    program, params = networks_of(x_shape, discrete)
    batch = random_batch(x_shape, len(x_shape) == 3)
    state = dreamer.AgentState(params=params, slow_critic=params["critic"], average=params,
                               opt_state=None, return_range=jnp.array([-1.0, 2.0]), step=0)
    found = []
    for on_cpu in (True, False):
        monkeypatch.setattr(fast_forms, "on_cpu", partial(bool, on_cpu))
        found.append(_losses(program, params, state, batch))
    cpu, gpu = found
    np.testing.assert_array_equal(cpu[1].latent.z, gpu[1].latent.z)  # the same draws
    jax.tree.map(partial(assert_allclose, rtol=2e-3, atol=2e-4), cpu, gpu)


def _losses(program, params, state, batch):
    total = on_one_device(lambda params: dreamer.total_loss(params, program, state, batch, KEY))
    (total, aux), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return total, aux, slopes


def test_a_loop_has_the_same_values_and_gradients_of_weights_start_and_inputs(monkeypatch):
    program, params = networks_of((4,), True)
    batch = random_batch((4,), False)  # episodes end and begin in the middle
    start = dreamer.Latent(batch.h[:, 0], jax.nn.one_hot(batch.z[:, 0], MODEL.classes))
    found = []
    for on_cpu in (True, False):
        monkeypatch.setattr(fast_forms, "on_cpu", partial(bool, on_cpu))
        error = partial(_error_of_states, program.networks, batch)
        gradient = jax.value_and_grad(error, (0, 1, 2, 3), has_aux=True)
        found.append(jax.jit(gradient)(params, start, batch.x, batch.a))
    plain, fast = found
    np.testing.assert_array_equal(plain[0][1][0].z, fast[0][1][0].z)  # the same draws
    jax.tree.map(partial(assert_allclose, rtol=1e-3, atol=1e-4), fast, plain)
    assert jnp.abs(plain[1][1].h).max() > 1e-2  # of the initial state


def _error_of_states(graph, batch, params, start, x, a):
    """A number that all states and probabilities change, and what they are."""
    world = nnx.merge(graph, params).world
    outputs = dreamer.observe(world, start, batch._replace(x=x, a=a), KEY)
    return sum(jnp.sum(jnp.sin(3.0 * part)) for part in jax.tree.leaves(outputs)), outputs


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 8, 11])
@pytest.mark.usefixtures("on_a_gpu")
def test_a_loop_runs_forwards_and_backwards_for_any_number_of_steps(steps, reverse):
    x = jax.random.normal(KEY, (steps, 3))
    found = [jax.value_and_grad(partial(_error_of_loop, scan, reverse), (0, 1, 2))(2.0, x[0], x)
             for scan in (jax.lax.scan, fast_forms.scan)]
    jax.tree.map(CLOSE, *found)


@pytest.mark.usefixtures("on_a_gpu")
def test_loops_of_several_agents_side_by_side_are_those_of_each():
    x, weights = jax.random.normal(KEY, (11, 3)), jnp.array([0.5, 2.0])
    gradient = jax.value_and_grad(partial(_error_of_loop, fast_forms.scan, False), (0, 1, 2))
    both = jax.vmap(gradient, (0, None, None))(weights, x[0], x)
    each = [gradient(weight, x[0], x) for weight in weights]
    jax.tree.map(lambda all_, *ones: CLOSE(all_, jnp.stack(ones)), both, *each)


def _error_of_loop(scan, reverse, weight, start, x):
    """A number that the last state and each output of a small loop change."""
    def step(state, x):
        state = jnp.tanh(weight * state + x)
        return state, state**2

    last, outputs = scan(step, start, x, reverse=reverse)
    return jnp.sum(jnp.sin(last)) + jnp.sum(jnp.cos(outputs))


@pytest.mark.usefixtures("on_a_gpu")
def test_norms_of_many_tensors_are_those_of_each():
    tensors = [jax.random.normal(KEY, shape) for shape in ((), (3,), (1024,), (70, 50), (2, 3, 4))]
    assert_allclose(fast_forms.norms(tensors), [np.linalg.norm(x) for x in tensors], rtol=1e-6)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_bins_are_counted_as_numpy_counts_them(on_cpu, monkeypatch):
    monkeypatch.setattr(fast_forms, "on_cpu", partial(bool, on_cpu))
    bins = np.asarray(dreamer.value_bins(41))
    x = np.concatenate([bins, bins - 1e-3, bins + 1e-3])
    expected = np.searchsorted(bins, x, side="right")
    np.testing.assert_array_equal(fast_forms.count_at_most(bins, x), expected)


def test_on_a_cpu_the_program_takes_the_fast_layers():
    networks, frozen = _assembled()
    assert isinstance(networks.world.sequence, fast_forms.FastBlockGRU)
    assert isinstance(networks.world.reward.out, fast_forms.FastLinear)
    assert isinstance(networks.world.encoder.convs[0], fast_forms.FastConv)
    assert isinstance(networks.critic, fast_forms.TimeFirst)
    assert isinstance(frozen, fast_forms.StepByStep)
    assert isinstance(frozen.slow_critic.out, fast_forms.FastLinear)


@pytest.mark.usefixtures("on_a_gpu")
def test_on_a_gpu_the_program_takes_the_plain_layers_and_rounds_matrices_but_no_norm():
    networks, frozen = _assembled("model.compute_dtype=bfloat16")
    assert isinstance(networks.critic, dreamer.Critic) and isinstance(frozen, dreamer.Frozen)
    for part in (networks, frozen.networks, frozen.slow_critic):
        for path, weight in nnx.to_flat_state(nnx.state(part)):
            assert weight.dtype == ("float32" if path[-1] == "scale" else "bfloat16"), path
    assert isinstance(networks.world.sequence, models.BlockGRU)


def _assembled(*sets):
    """Networks for images of this backend, as trained and as frozen."""
    program, params = networks_of((10, 10, 3), True, *sets)
    return (dreamer.assemble(program, params),
            dreamer.freeze(program, params, params["critic"]))


def error_of_images(weights, networks, x, h, z):
    """A number that every token and pixel changes, and what they are."""
    encoder, decoder = map(fast_forms.fast, nnx.merge(networks, weights))
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
        monkeypatch.setattr(fast_forms, "PIXELS", images * 16 * 12)
        lowered = jax.jit(partial(function)).lower(*inputs)  # a new function: nothing is reused
        text = lowered.as_text()  # loops, and what is computed again
        counts = [text.count(word) for word in ("stablehlo.while", "optimization_barrier")]
        found.append((counts, lowered.compile()(*inputs)))
    (before, once), (after, few) = found
    assert before[0] == 0 < after[0] and before[1] < after[1]
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-6), once, few)
