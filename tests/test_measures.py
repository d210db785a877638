"""The quality measures of a world model agree with values computed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from utils.pictures import measures

RANDOM = np.random.default_rng(0)


def test_predicting_the_mean_has_error_1_in_any_units():
    x = RANDOM.normal(3.0, (1.0, 100.0, 1e-4), (8, 500, 3))
    for kind in (x, np.round(x.reshape(8, 100, 5, 1, 3) % 255)):
        weights = measures.importance(kind)
        cost = measures.squared_error(kind.mean((0, 1)), kind, weights)
        assert cost.shape == kind.shape[:2] and cost.mean() == pytest.approx(1.0)


def test_constant_entries_are_ignored_and_the_others_have_equal_weights():
    x = RANDOM.normal(size=(4, 300, 3)) * (1.0, 10.0, 0.0) + 5.0
    weights = measures.importance(x)
    assert weights[2] == 0.0 and np.isfinite(weights).all()
    assert_allclose(weights[:2] * x.var((0, 1))[:2], 0.5)
    assert_allclose(measures.importance(np.full((2, 3, 1), 7.0)), 0.0)


def test_an_error_is_averaged_over_the_valid_starts():
    squared, known = np.array([[4.0, 9.0], [16.0, 1e9]]), np.array([[1, 1], [1, 0]], bool)
    assert_allclose(measures.rms(squared, known), [10**0.5, 3.0])
    assert np.isnan(measures.rms(squared, np.zeros((2, 2), bool))).all()


def test_a_correlation_is_1_on_a_line_and_nan_for_constants():
    a = RANDOM.normal(size=50)
    assert measures.correlation(a, 3 * a + 1) == pytest.approx(1.0)
    assert measures.correlation(a, -a) == pytest.approx(-1.0)
    assert np.isnan(measures.correlation(a, np.ones(50)))


def _rows(r, is_last, is_terminal):
    return SimpleNamespace(r=np.array([r], float), is_last=np.array([is_last], bool),
                           is_terminal=np.array([is_terminal], bool))


def test_a_return_ends_at_a_termination_and_bootstraps_at_a_time_limit():
    # rows 0-2: the world ends at 2; rows 3-5: cut at 5; rows 6-7: the recording stops
    rows = _rows([0, 1, 2, 0, 3, 4, 0, 5], [0, 0, 1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0])
    values = np.array([[9, 9, 9, 9, 9, 10, 9, 20]], float)
    found = measures.returns(rows, values, 0.5)
    assert_allclose(found.total[0, [0, 1, 3, 4, 6]],
                    [1 + 0.5 * 2, 2, 3 + 0.5 * (4 + 0.5 * 10), 4 + 0.5 * 10, 5 + 0.5 * 20])
    assert_allclose(found.share[0], [1, 1, np.nan, 0.75, 0.5, np.nan, 0.5, np.nan])


def test_the_return_of_an_endless_constant_reward_is_the_reward_times_the_horizon():
    rows = _rows(np.ones(3000), np.zeros(3000), np.zeros(3000))
    found = measures.returns(rows, np.zeros((1, 3000)), 0.99)
    assert found.total[0, 0] == pytest.approx(100.0) and found.share[0, 0] == pytest.approx(1.0)


def test_calibrated_probabilities_lie_on_the_diagonal():
    chances = RANDOM.random(200_000)
    found = measures.calibration(chances, RANDOM.random(200_000) < chances)
    assert found.rows.sum() == 200_000
    assert_allclose(found.happened, found.predicted, atol=0.02)
    assert_allclose(found.predicted, np.arange(0.05, 1.0, 0.1), atol=0.01)


def test_a_probability_of_1_falls_into_the_last_bin_and_empty_bins_are_zero():
    found = measures.calibration(np.ones(5), np.array([1, 1, 1, 1, 0], bool))
    assert found.rows.tolist() == [0] * 9 + [5]
    assert (found.predicted[-1], found.happened[-1]) == (1.0, 0.8)


def test_the_plane_is_that_of_the_two_principal_components():
    flat = RANDOM.normal(size=(300, 2)) * (5.0, 2.0)
    turned, _ = np.linalg.qr(RANDOM.normal(size=(40, 40)))
    places, shares = measures.plane(np.pad(flat, ((0, 0), (0, 38))) @ turned + 3.0)
    assert shares.sum() == pytest.approx(1.0) and shares[0] > shares[1]
    centred = flat - flat.mean(0)
    assert_allclose(places @ places.T, centred @ centred.T, atol=1e-8)  # the same but for a turn


def test_a_latent_uses_all_its_classes_or_one():
    z = np.eye(4)[np.stack([np.arange(400) % 4, np.full(400, 2)], 1)]
    shares, counts = measures.usage(z)
    assert_allclose(counts, [4.0, 1.0])
    assert_allclose(shares, [[0.25] * 4, [0, 0, 1, 0]])
