import numpy as np
import pytest
import tensorflow as tf

from meta import random
from meta.continuation import evaluation, kernels, spectra, training
from meta.continuation.problem import Basis, Problem

FAMILIES = spectra.FAMILIES | spectra.UNSEEN


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_a_kernel_is_its_mean_over_a_cell(name):
    times, edges = np.linspace(0.0, 10.0, 9), kernels.edges(name, 16, 8.0)
    found = kernels.matrix(name, times, edges, 10.0)
    inner = np.linspace(edges[:-1], edges[1:], 4001)
    middles = 0.5 * (inner[1:] + inner[:-1])
    exact = kernels.KERNELS[name](times[:, None, None], middles, 10.0).mean(axis=1)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


def test_kernels_have_the_symmetries_of_their_statistics():
    times, w = np.linspace(0.0, 10.0, 11)[:, None], np.linspace(0.1, 400.0, 50)
    fermionic = kernels.fermionic(times, w, 10.0)
    np.testing.assert_allclose(kernels.fermionic(times, -w, 10.0), fermionic[::-1], atol=1e-300)
    np.testing.assert_allclose(fermionic[0] + fermionic[-1], 1.0)
    bosonic = kernels.bosonic(times, w, 10.0)
    np.testing.assert_allclose(bosonic, bosonic[::-1])
    np.testing.assert_allclose(kernels.laplace(times, w, 10.0), np.exp(-times * w))


def test_an_unknown_kernel_is_named():
    with pytest.raises(ValueError, match="`kernel`.*'sine'"):
        kernels.matrix("sine", np.ones(3), np.ones(3), 1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_peaks_have_about_unit_area_and_width(name):
    x = np.linspace(-400.0, 400.0, 400_001)
    density = FAMILIES[name](tf.constant(x, tf.float32)).numpy().astype(float)
    assert density.min() >= 0
    area = density.sum() * (x[1] - x[0])
    assert abs(area - 1.0) < 0.12
    cumulative = np.cumsum(density) / density.sum()
    spread = x[np.searchsorted(cumulative, 0.84)] - x[np.searchsorted(cumulative, 0.16)]
    assert 0.8 < spread < 4.5


def test_spectra_are_positive_of_sum_one_and_never_the_same():
    first, second = (spectra.draw(random.seed(i), 500, 256).numpy() for i in range(2))
    assert first.min() >= 0
    np.testing.assert_allclose(first.sum(axis=1), 1.0, rtol=1e-5)
    assert np.abs(first - second).max(axis=1).min() > 0
    # Some have a gap in the middle, others none.
    empty = (first[:, 96:160] == 0).any(axis=1)
    assert 0.15 < empty.mean() < 0.7
    np.testing.assert_array_equal(first, spectra.draw(random.seed(0), 500, 256).numpy())


def test_unseen_families_are_others():
    assert not set(spectra.FAMILIES) & set(spectra.UNSEEN)
    seen = spectra.draw(random.seed(0), 50, 64)
    unseen = spectra.draw(random.seed(0), 50, 64, spectra.UNSEEN)
    assert np.abs(seen - unseen).max(axis=1).min() > 0


def test_fewer_cells_hold_the_same_weights():
    fine = spectra.draw(random.seed(0), 3, 64)
    coarse = spectra.coarsen(fine, 16).numpy()
    np.testing.assert_allclose(coarse[1, 2], fine.numpy()[1, 8:12].sum(), rtol=1e-6)


def measurement():
    times, edges = np.linspace(0.0, 10.0, 24), kernels.edges("fermionic", 32, 4.0)
    kernel = kernels.matrix("fermionic", times, edges, 10.0)
    weights = np.random.default_rng(0).dirichlet(np.ones(32))
    return kernel, weights, kernel @ weights


def noises():
    rng = np.random.default_rng(1)
    return {
        "number": 1e-2,
        "errors": rng.uniform(5e-3, 2e-2, 24),
        "covariance": 1e-4 * training.covariance(rng, 24, "correlated"),
    }


@pytest.mark.parametrize("noise", noises().values(), ids=noises())
def test_chi2_is_that_of_the_data(noise):
    kernel, weights, correlation = measurement()
    correlation = correlation + 1e-2 * np.random.default_rng(2).normal(size=24)
    problem = Problem.of(kernel, correlation, noise)
    matrix = noise if np.ndim(noise) == 2 else np.diag(np.broadcast_to(noise, 24) ** 2)
    residual = kernel @ weights - correlation
    exact = residual @ np.linalg.solve(matrix, residual) / 24
    np.testing.assert_allclose(problem.chi2(weights), exact, rtol=1e-6)


@pytest.mark.parametrize("noise", noises().values(), ids=noises())
def test_coefficients_have_white_noise_of_variance_one(noise):
    kernel, _, _ = measurement()
    basis = Basis.of(kernel, noise)
    matrix = noise if np.ndim(noise) == 2 else np.diag(np.broadcast_to(noise, 24) ** 2)
    own = basis.project @ matrix @ basis.project.T
    np.testing.assert_allclose(own, np.eye(len(own)), atol=1e-6)
    np.testing.assert_allclose(
        basis.project @ kernel, basis.singular_values[:, None] * basis.v.T, atol=1e-6
    )


def test_the_signs_of_singular_vectors_do_not_depend_on_the_noise():
    kernel, _, _ = measurement()
    first, second = Basis.of(kernel, 1e-5), Basis.of(kernel, 3e-3)
    assert (np.linspace(1.0, 2.0, 32) @ first.v > 0).all()
    rank = np.sum(second.singular_values > 1.0)
    overlap = np.sum(first.v[:, :rank] * second.v[:, :rank], axis=0)
    np.testing.assert_allclose(overlap, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("noise", "what"),
    [
        (0.0, "positive"),
        (-1.0, "positive"),
        (np.nan, "finite"),
        (np.ones(3), "24 of them"),
        ("0.1", "numbers"),
        (-np.eye(24), "positive definite"),
        (np.triu(np.ones((24, 24))), "symmetric"),
    ],
)
def test_noise_that_is_none_is_named(noise, what):
    kernel, _, correlation = measurement()
    with pytest.raises((TypeError, ValueError), match=f"`noise`.*{what}"):
        Problem.of(kernel, correlation, noise)


def test_operators_take_fine_spectra_to_the_data_of_their_kernel():
    rng = np.random.default_rng(0)
    one = training.operator(rng, 16, "laplace", 30.0, 32, "white")
    operators = training.Operators.stack([one, one])
    coarse, fine, _ = one
    weights = rng.dirichlet(np.ones(16 * training.FINE))
    problem = Problem.of(coarse, fine @ weights, 1e-3)
    rank = len(problem.b)
    np.testing.assert_allclose(
        operators.fine[1][:rank] @ weights / 1e-3, problem.b, rtol=2e-3, atol=2e-2
    )
    s = operators.singular_values[1][:rank] / 1e-3
    np.testing.assert_allclose(s, problem.singular_values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["white", "correlated", "uneven"])
def test_covariances_have_unit_level(kind):
    matrix = training.covariance(np.random.default_rng(0), 40, kind)
    np.testing.assert_allclose(np.trace(matrix), 40.0)
    np.linalg.cholesky(matrix)


def test_errors_are_their_formulas():
    truth = np.zeros((1, 10))
    truth[0, 3] = 1.0
    answer = np.roll(truth, 2, axis=1)
    np.testing.assert_allclose(evaluation.relative_errors(answer, truth), 2.0**0.5)
    np.testing.assert_allclose(evaluation.moved(answer, truth), 0.2)
    np.testing.assert_allclose(evaluation.peak_errors(answer, truth), 0.2)
    bars = np.full((1, 10, 2), 0.5)
    np.testing.assert_allclose(evaluation.coverage(answer, bars, truth), 0.8)


def test_peaks_are_found_also_flat_ones_and_at_the_ends():
    spectrum = np.array([5.0, 1, 1, 1, 3, 3, 3, 1, 1.1, 1, 1, 4])
    np.testing.assert_array_equal(evaluation.peaks(spectrum), [0, 5, 11])


@pytest.mark.parametrize("kernel", kernels.KERNELS)
def test_a_test_set_is_noisy_by_its_level(kernel):
    test = evaluation.make(50, 1e-2, 64, 3, kernel=kernel)
    residual = (test.correlations - test.truth @ test.kernel.T) / test.noise
    # Data come from a finer grid: a little more than noise.
    assert 0.9 < residual.std() < 1.3
    assert abs(test.noise / test.kernel.max() - 1e-2) < 1e-9
