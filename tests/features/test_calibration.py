import numpy as np
import pytest

from can_jax.features.calibration import calibration


def logits_of(*rows):
    return np.log(np.array(rows))


def test_by_hand():
    # Confidences 0.9 right, 0.8 wrong, 0.55 right, 0.6 right; ten bins.
    logits = logits_of([0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.6, 0.4])
    labels = np.array([0, 1, 1, 0])
    found = calibration(logits, labels, 10)
    # (0.8, 0.9]: 0.1; (0.7, 0.8]: 0.8; (0.5, 0.6]: both right, |2 - 1.15|.
    assert found["ece"] == pytest.approx(100 * (0.1 + 0.8 + 0.85) / 4)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.55, 0.6]).mean())
    brier = [2 * 0.1**2, 2 * 0.8**2, 2 * 0.45**2, 2 * 0.4**2]
    assert found["brier"] == pytest.approx(np.mean(brier))


def test_confidence_that_is_deserved_costs_nothing():
    labels = np.array([0] * 8 + [1] * 2)
    found = calibration(logits_of(*[[0.8, 0.2]] * 10), labels, 15)
    assert found["ece"] == pytest.approx(0, abs=1e-9)


def test_large_logits_and_those_left_out():
    found = calibration(np.array([[1e4, -1e4, -np.inf]] * 2), np.array([0, 2]), 15)
    assert found["ece"] == pytest.approx(50) and found["brier"] == pytest.approx(1)


def test_memory_does_not_grow_with_the_square_of_the_classes():
    logits = np.zeros((3, 2**19))
    logits[:, 7] = 50.0
    found = calibration(logits, np.array([7, 7, 2**19 - 1]), 15)
    assert found["brier"] == pytest.approx(2 / 3) and found["ece"] == pytest.approx(100 / 3)
