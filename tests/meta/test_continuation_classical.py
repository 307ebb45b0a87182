import functools

import numpy as np
import pytest

from meta import random, tasks
from meta.continuation import classical, kernels
from meta.continuation.problem import Problem

SEED = random.seed(7)
METHODS = {
    "evidence": functools.partial(classical.maximum_entropy, choice="evidence"),
    "discrepancy": functools.partial(classical.maximum_entropy, choice="discrepancy"),
    "sparse": classical.sparse_modelling,
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def problem(num=4, **config):
    """A task, and its problems as float64 arrays."""
    task = tasks.get("analytic_continuation", **config)
    drawn = task.draw(SEED, num)
    return task, drawn, {name: np.asarray(x, np.float64) for name, x in drawn.items()}


def error(answer, spectrum):
    return np.sum(np.square(answer - spectrum)) / np.sum(np.square(spectrum))


def smooth(frequencies):
    weights = np.exp(-0.5 * ((frequencies - 1.5) / 1.5) ** 2)
    return weights / weights.sum()


@every_method
def test_a_smooth_spectrum_is_recovered_from_almost_exact_data(method):
    task, _, drawn = problem()
    spectrum, kernel = smooth(task.frequencies.astype("float64")), drawn["kernel"][0]
    noise = 1e-6 * np.random.default_rng(0).normal(size=len(kernel))
    answer = method(kernel, kernel @ spectrum + noise, 1e-6)
    # The evidence is known to follow very precise data too closely.
    assert error(answer.weights, spectrum) < (0.03 if method is METHODS["evidence"] else 1e-3)
    np.testing.assert_allclose(answer.weights.sum(), 1.0)
    assert answer.weights.min() >= 0


@every_method
def test_noise_hides_details_but_not_the_spectrum(method):
    _, _, drawn = problem(num=8, noise=3e-3)
    arguments = zip(drawn["kernel"], drawn["correlation"], drawn["noise"], strict=True)
    answers = [method(k, g, float(noise)) for k, g, noise in arguments]
    errors = [error(a.weights, s) for a, s in zip(answers, drawn["spectrum"], strict=True)]
    flat = [error(np.full_like(s, 1 / len(s)), s) for s in drawn["spectrum"]]
    assert 0.0 < np.mean(errors) < 0.5 * np.mean(flat)
    assert max(a.chi2 for a in answers) < 2.0


@pytest.mark.parametrize("target", [1.0, 2.0])
def test_chi2_is_as_prescribed(target):
    _, _, drawn = problem(num=8)
    reached = 0
    for kernel, correlation in zip(drawn["kernel"], drawn["correlation"], strict=True):
        chosen = functools.partial(METHODS["discrepancy"], kernel, correlation, 1e-3)
        answer = chosen(target=target)
        own = np.mean(((kernel @ answer.weights - correlation) / 1e-3) ** 2)
        np.testing.assert_allclose(answer.chi2, own, rtol=1e-4)
        best = chosen(target=1e-3).chi2 / 1.1
        assert abs(answer.chi2 - max(target, 1.1 * best)) < 1e-3
        reached += abs(answer.chi2 - target) < 1e-3
    assert reached >= 4


def test_the_fit_is_the_minimum_of_the_functional():
    _, _, drawn = problem()
    kernel, correlation = drawn["kernel"][0], drawn["correlation"][0]
    default = smooth(np.linspace(-8, 8, kernel.shape[1]))
    answer = METHODS["discrepancy"](kernel, correlation, 1e-3, default)
    p, alpha = answer.weights, answer.regularisation
    gradient = kernel.T @ (kernel @ p - correlation) / 1e-6 + alpha * np.log(p / default)
    # The same for all frequencies: nothing is left but what the norm of p fixes.
    assert gradient.std() < 1e-5 * alpha


def test_the_evidence_chooses_as_many_good_data_as_entropy_pays_for():
    """Gull's condition: `-2 alpha S` is the sum of `curvature / (alpha + curvature)`."""
    _, _, drawn = problem()
    for kernel, correlation in zip(drawn["kernel"], drawn["correlation"], strict=True):
        p, _, alpha = METHODS["evidence"](kernel, correlation, 1e-3)
        root = kernel / 1e-3 * np.sqrt(p)
        curvature = np.linalg.eigvalsh(root @ root.T)
        divergence = np.sum(p * np.log(np.maximum(p * len(p), 1e-300)))
        # Four alphas to a decade are not quite the best one, and the ratio changes by more.
        assert 0.4 < 2 * alpha * divergence / np.sum(curvature / (alpha + curvature)) < 2.5


def test_without_information_the_default_model_is_the_answer():
    _, _, drawn = problem()
    kernel, correlation = drawn["kernel"][0], drawn["correlation"][0]
    default = smooth(np.linspace(-8, 8, kernel.shape[1]))
    answer = METHODS["discrepancy"](kernel, correlation, 100.0, 3.0 * default)
    np.testing.assert_allclose(answer.weights, default)
    assert np.isinf(answer.regularisation)
    answer = METHODS["evidence"](kernel, correlation, 100.0, 3.0 * default)
    assert error(answer.weights, default) < 1e-3


def test_a_good_default_model_helps():
    _, _, drawn = problem(noise=1e-2)
    for i in range(4):
        arguments = drawn["kernel"][i], drawn["correlation"][i], 1e-2
        spectrum = drawn["spectrum"][i] + 1e-6
        plain = METHODS["discrepancy"](*arguments)
        helped = METHODS["discrepancy"](*arguments, default=spectrum)
        assert error(helped.weights, spectrum) < 0.5 * error(plain.weights, spectrum)


def test_the_sparse_fit_is_a_minimum():
    _, _, drawn = problem()
    data = Problem.of(drawn["kernel"][0], drawn["correlation"][0], 1e-3)
    strength = 100.0

    def objective(p):
        return 0.5 * data.size * data.chi2(p) + strength * np.abs(p @ data.v).sum()

    answers, state = [], None
    for _ in range(4):
        p, state = classical._sparse_fit(data, strength, state)
        answers.append(objective(p))
    np.testing.assert_allclose(answers[0], answers[-1], rtol=2e-2)
    rng = np.random.default_rng(0)
    for other in [*rng.dirichlet(np.full(len(p), 0.3), 50), np.full(len(p), 1 / len(p))]:
        for fraction in (1e-3, 1e-2, 0.1, 1.0):
            assert objective((1 - fraction) * p + fraction * other) > answers[-1]


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("noise", {"noise": 0.0}),
        ("target", {"target": -1.0}),
        ("kernel", {"kernel": np.ones(3)}),
        ("correlation", {"correlation": np.ones(3)}),
        ("default", {"default": np.zeros(5)}),
        ("choice", {"choice": "l_curve"}),
    ],
)
def test_what_does_not_fit_is_named(argument, change):
    arguments = {"kernel": np.ones((4, 5)), "correlation": np.ones(4), "noise": 0.1, **change}
    with pytest.raises(ValueError, match=f"`{argument}`"):
        classical.maximum_entropy(**arguments)


def test_alpha_may_be_told():
    _, _, drawn = problem()
    arguments = drawn["kernel"][0], drawn["correlation"][0], 1e-3
    chosen = METHODS["discrepancy"](*arguments)
    told = classical.maximum_entropy(*arguments, choice=chosen.regularisation)
    assert told.regularisation == chosen.regularisation
    np.testing.assert_allclose(told.weights, chosen.weights, rtol=1e-4, atol=1e-8)


def test_correlated_noise_counts_by_its_covariance():
    """Two values that are always wrong together are worth one."""
    _, _, drawn = problem()
    kernel, correlation = drawn["kernel"][0], drawn["correlation"][0]
    twice = np.repeat(kernel, 2, axis=0), np.repeat(correlation, 2)
    pairs = np.kron(np.eye(len(kernel)), np.full((2, 2), 1.0) + 1e-9 * np.eye(2)) * 1e-6
    alone = classical.maximum_entropy(kernel, correlation, 1e-3, choice=10.0)
    together = classical.maximum_entropy(*twice, pairs, choice=10.0)
    np.testing.assert_allclose(together.weights, alone.weights, rtol=1e-3, atol=1e-7)
    errors = classical.maximum_entropy(*twice, np.full(len(twice[1]), 2.0**0.5 * 1e-3), choice=10.0)
    np.testing.assert_allclose(errors.weights, alone.weights, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_an_independent_maximum_entropy_agrees(seed, monkeypatch):
    continuation = pytest.importorskip(
        "ana_cont.continuation", reason="the package ana_cont is not installed"
    )
    if not hasattr(np, "trapz"):
        # Its release of 2024 knows no newer NumPy.
        monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)
    rng = np.random.default_rng(seed)
    beta, times = 10.0, np.linspace(0.0, 10.0, 64)
    omega = np.linspace(-6.0, 6.0, 121)
    cells = np.gradient(omega)
    cells[[0, -1]] *= 0.5
    points = kernels.fermionic(times[:, None], omega, beta)
    truth = np.exp(-0.5 * ((omega - rng.uniform(-2, 2)) / rng.uniform(0.6, 1.2)) ** 2)
    truth /= truth @ cells
    correlation = points @ (truth * cells) + 1e-4 * rng.normal(size=64)
    default = np.full(121, 1.0 / cells.sum())
    theirs, _ = continuation.AnalyticContinuationProblem(
        im_axis=times, re_axis=omega, im_data=correlation, kernel_mode="time_fermionic", beta=beta
    ).solve(
        method="maxent_svd",
        model=default,
        stdev=np.full(64, 1e-4),
        alpha_determination="chi2kink",
        optimizer="newton",
        interactive=False,
        verbose=False,
    )
    ours = classical.maximum_entropy(
        points, correlation, 1e-4, default * cells, choice=float(theirs.alpha)
    )
    # It does not fix the integral, which the data leave free by about the noise.
    difference = error(ours.weights, theirs.A_opt * cells)
    other = classical.maximum_entropy(
        points, correlation, 1e-4, default * cells, choice=20.0 * float(theirs.alpha)
    )
    assert difference < 1e-4
    assert error(other.weights, theirs.A_opt * cells) > 1e-3
