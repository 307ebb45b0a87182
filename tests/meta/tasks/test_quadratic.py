import numpy as np
import pytest

from meta import random, tasks

SEED = random.seed(5)


def test_spaced_eigenvalues_are_divided_by_their_trace():
    spectrum = tasks.get("quadratic", dimension=3, condition=100.0).draw(SEED, 2)["spectrum"]
    np.testing.assert_allclose(spectrum, np.tile([[1.0, 0.1, 0.01]], (2, 1)) / 1.11, rtol=1e-5)


def test_drawn_eigenvalues_are_log_uniform_and_of_each_problem_its_own():
    task = tasks.get("quadratic", dimension=5, condition=1000.0, drawn_spectrum=True)
    exponents = -np.log10(task.draw(SEED, 2000)["spectrum"].numpy())
    assert exponents.shape == (2000, 5)
    quantiles = np.quantile(exponents, [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(quantiles, [0.0, 0.75, 1.5, 2.25, 3.0], atol=0.05)


def test_the_loss_has_the_spectrum_as_hessian():
    task = tasks.get("quadratic", dimension=4, noise=0.0, drawn_spectrum=True)
    setting = task.draw(SEED, 1)
    # Along a reflected axis the Hessian is an eigenvalue.
    axes = np.eye(4, dtype="float32")
    for reflection in setting["reflections"].numpy()[0][::-1]:
        axes = axes - 2.0 * np.outer(axes @ reflection, reflection)
    for axis, eigenvalue in zip(axes, setting["spectrum"].numpy()[0], strict=True):
        data = task.batch("test", SEED, 1, setting)
        loss = task.loss([setting["optimum"] + axis], data, setting)
        np.testing.assert_allclose(loss, [0.5 * eigenvalue], rtol=1e-4)


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match="`drawn_spectrum` must be a bool. Received: .*=1"):
        tasks.get("quadratic", drawn_spectrum=1)
