"""Gradients are clipped per tensor, the learning rate rises from 0 and falls to its share."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import dreamer

CONFIG = SimpleNamespace(lr=0.1, warmup=4, lr_final=0.2, agc=0.3, agc_floor=1e-3, rms_decay=0.999,
                         momentum=0.9, eps=1e-20)


def clipped(gradient, weights):
    """The gradients after clipping to 0.5 of the weights' norm, which counts as 0.1 at least."""
    clip = dreamer.adaptive_gradient_clipping(0.5, 0.1)
    return clip.update(gradient, clip.init(weights), weights)[0]


def moves(config, gradients):
    """The updates of one weight tensor of ones, one after the other."""
    optimizer, weights, moved = dreamer.laprop(config, 14), jnp.ones(2), []
    state = optimizer.init(weights)
    for gradient in gradients:
        update, state = optimizer.update(jnp.array(gradient), state, weights)
        moved.append(np.asarray(update))
    return moved


def test_a_gradient_too_long_for_its_tensor_keeps_its_direction_and_gets_the_limit_as_length():
    weights = {"a": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.array([1.0])}
    gradient = {"a": jnp.array([[6.0, 0.0], [8.0, 0.0]]), "b": jnp.array([0.4])}
    # a: |w| = 5, |g| = 10, allowed 2.5; its empty columns are not clipped by themselves; b may stay
    after = clipped(gradient, weights)
    assert_allclose(after["a"], [[1.5, 0.0], [2.0, 0.0]], rtol=1e-6)
    assert_array_equal(after["b"], gradient["b"])


def test_weights_of_zero_still_let_a_gradient_through_as_if_they_had_the_floors_norm():
    assert_allclose(clipped(jnp.array([3.0, -4.0]), jnp.zeros(2)), [0.03, -0.04], rtol=1e-6)
    assert_array_equal(clipped(jnp.zeros(2), jnp.zeros(2)), np.zeros(2))


def test_the_learning_rate_rises_from_exactly_0_in_a_line_and_falls_in_a_line_to_its_share():
    rate = dreamer.learning_rate(0.1, 4, 0.2, 14)
    assert rate(0) == 0.0
    assert_allclose([rate(t) for t in (1, 2, 4)], [0.025, 0.05, 0.1], rtol=1e-6)
    assert_allclose([rate(t) for t in (9, 14, 99)], [0.06, 0.02, 0.02], rtol=1e-6)


@pytest.mark.parametrize("warmup, updates", [(0, 10), (4, 10), (4, 2)])
def test_a_final_share_of_1_keeps_the_rate_and_no_warm_up_starts_with_it(warmup, updates):
    rate = dreamer.learning_rate(0.1, warmup, 1.0, updates)
    assert_allclose([rate(t) for t in range(warmup, 20)], 0.1, rtol=1e-6)


def test_the_first_update_of_a_warm_up_moves_nothing():
    first, second = moves(CONFIG, [[0.1, -0.2]] * 2)
    assert_array_equal(first, [0.0, 0.0])
    assert second[0] < 0.0 < second[1]


def test_the_size_of_a_gradient_does_not_matter_and_the_first_step_is_the_learning_rate():
    config = SimpleNamespace(**vars(CONFIG) | {"warmup": 0})
    for scale in (1e-6, 1e-2):  # short enough not to be clipped
        assert_allclose(moves(config, [[scale, -3 * scale]])[0], [-0.1, 0.1], rtol=1e-4)


def test_the_momentum_is_the_mean_of_normalised_gradients_not_of_gradients():
    config = SimpleNamespace(**vars(CONFIG) | {"warmup": 0, "lr_final": 1.0, "rms_decay": 0.5})
    gradients = np.array([[0.3, 0.0], [-0.1, 0.0]])  # the norm of the weights allows 0.42
    squares = [0.3**2, (0.25 * 0.3**2 + 0.5 * 0.1**2) / 0.75]  # running means, bias corrected
    normal = gradients[:, 0] / np.sqrt(squares)
    expected = [normal[0], (0.09 * normal[0] + 0.1 * normal[1]) / 0.19]
    moved = [update[0] for update in moves(config, gradients)]
    assert_allclose(moved, -0.1 * np.array(expected), rtol=1e-4)
