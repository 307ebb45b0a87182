import numpy as np
import pytest
from sklearn.datasets import make_moons

from meta import random, tasks
from meta.tasks.families import two_moons

SEED = random.seed(4)


def test_points_are_on_two_half_circles():
    zeros = np.zeros(1, "float32")
    points, labels = two_moons.draw_points(SEED, (1, 1000), zeros, zeros)
    points, labels = points.numpy()[0] + [0.5, 0.25], labels.numpy()[0]
    assert 450 < labels.sum() < 550
    for label, (x, y), side in ((0, (0.0, 0.0), 1), (1, (1.0, 0.5), -1)):
        offset = points[labels == label] - [x, y]
        np.testing.assert_allclose(np.hypot(*offset.T), 1, rtol=1e-5)
        assert (side * offset[:, 1] > 0).all()


def test_they_are_distributed_as_scikit_learns():
    zeros = np.zeros(1, "float32")
    points, labels = two_moons.draw_points(SEED, (1, 20000), zeros + 0.2, zeros)
    theirs, their_labels = make_moons(20000, noise=0.2, random_state=0)
    for label in range(2):
        ours = points.numpy()[0][labels.numpy()[0] == label] + [0.5, 0.25]
        expected = theirs[their_labels == label]
        for quantile in (0.1, 0.5, 0.9):
            np.testing.assert_allclose(
                np.quantile(ours, quantile, axis=0),
                np.quantile(expected, quantile, axis=0),
                atol=0.04,
            )
        np.testing.assert_allclose(np.cov(ours.T), np.cov(expected.T), atol=0.02)


def test_every_problem_has_its_own_rotation_and_noise():
    task = tasks.get("two_moons", rotation=[0.0, np.pi / 2], noise=[1e-3, 1e-3], batch_size=500)
    setting = task.draw(SEED, 8)
    assert set(setting["variant"].numpy()) == {0, 1}
    points, labels = task.batch("train", SEED, 8, setting)
    for variant, own_points, own_labels in zip(setting["variant"], points, labels, strict=True):
        x, y = own_points.numpy().T
        if variant == 1:  # Turned back by a quarter of a circle.
            x, y = y, -x
        sign = 1 - 2 * own_labels.numpy()
        np.testing.assert_allclose(np.hypot(x + 0.5 * sign, y + 0.25 * sign), 1, atol=0.01)


def test_wrong_arguments_are_named():
    for config, text in (
        ({"hidden_units": [4, 0]}, "`hidden_units`.*0"),
        ({"batch_size": 0}, "`batch_size`.*0"),
        ({"activation": "nope"}, "nope"),
    ):
        with pytest.raises(ValueError, match=text):
            tasks.get("two_moons", **config)
