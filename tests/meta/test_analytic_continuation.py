import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from meta import analytic_continuation, random, tasks
from meta.tasks.analytic_continuation import fermionic_kernel

SEED = random.seed(7)
METHODS = {
    "evidence": functools.partial(analytic_continuation.maximum_entropy, choice="evidence"),
    "discrepancy": functools.partial(analytic_continuation.maximum_entropy, choice="discrepancy"),
    "sparse": analytic_continuation.sparse_modelling,
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


def test_the_kernel_is_the_formula_and_does_not_overflow():
    times, frequencies = np.linspace(0, 10, 11), np.linspace(-8, 8, 33)
    found = fermionic_kernel(
        tf.constant(times[None], tf.float32), frequencies.astype("float32"), tf.constant([10.0])
    )[0]
    exact = np.exp(-times[:, None] * frequencies) / (1 + np.exp(-10.0 * frequencies))
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=1e-30)
    extreme = fermionic_kernel(
        tf.constant([[0.0, 500.0, 1000.0]]), np.float32([-8, 0, 8]), tf.constant([1000.0])
    )[0]
    np.testing.assert_allclose(extreme, [[0, 0.5, 1], [0, 0.5, 0], [1, 0.5, 0]], atol=1e-30)


def test_spectra_and_measurements_are_what_the_settings_say():
    _, _, drawn = problem(num=400, noise=0.02, num_times=16)
    spectrum = drawn["spectrum"]
    assert spectrum.min() >= 0
    np.testing.assert_allclose(spectrum.sum(axis=1), 1.0, rtol=1e-5)
    exact = np.einsum("ptw,pw->pt", drawn["kernel"], spectrum)
    residual = drawn["correlation"] - exact
    np.testing.assert_allclose(residual.std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(residual.mean(), 0.0, atol=1e-3)
    # The two ends are the occupied and the empty share of the spectrum.
    np.testing.assert_allclose(exact[:, 0] + exact[:, -1], 1.0, rtol=1e-5)


def test_the_training_loss_is_chi2_and_the_others_are_the_distance():
    task, setting, drawn = problem()
    logits = random.normal((4, task.num_frequencies), random.fold_in(SEED, 1))
    answer = np.asarray(tf.nn.softmax(logits), np.float64)
    fitted = np.einsum("ptw,pw->pt", drawn["kernel"], answer)
    chi2 = np.mean(((fitted - drawn["correlation"]) / 1e-3) ** 2, axis=1)
    at_flat = np.mean(((drawn["kernel"].mean(2) - drawn["correlation"]) / 1e-3) ** 2, axis=1)
    expected = {
        "train": chi2 / (1 + at_flat),
        "validation": [error(*pair) for pair in zip(answer, drawn["spectrum"], strict=True)],
    }
    expected["test"] = expected["validation"]
    for split, losses in expected.items():
        batch = task.batch(split, SEED, 4, setting)
        np.testing.assert_allclose(task.loss([logits], batch, setting), losses, rtol=2e-3)


def test_training_does_not_see_the_spectrum():
    task, setting, _ = problem()
    batch = task.batch("train", SEED, 4, setting)
    assert not batch["spectrum"].numpy().any()
    logits = random.normal((4, task.num_frequencies), SEED)
    other = {**setting, "spectrum": tf.reverse(setting["spectrum"], [0])}
    np.testing.assert_array_equal(
        task.loss([logits], batch, setting), task.loss([logits], batch, other)
    )


def test_following_the_data_first_helps():
    task, setting, _ = problem(num=8)
    logits = tf.Variable(task.init(SEED, 8, setting)[0])
    optimizer = keras.optimizers.Adam(0.1)
    data = {split: task.batch(split, SEED, 8, setting) for split in ("train", "validation")}
    start = task.loss([logits], data["validation"], setting)
    for _ in range(100):
        with tf.GradientTape() as tape:
            loss = task.loss([logits], data["train"], setting)
        optimizer.apply(tape.gradient(loss, [logits]), [logits])
    end = task.loss([logits], data["validation"], setting)
    assert np.mean(end) < 0.6 * np.mean(start)


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
    data = analytic_continuation._Data.of(drawn["kernel"][0], drawn["correlation"][0], 1e-3)
    strength = 100.0

    def objective(p):
        return 0.5 * data.size * data.chi2(p) + strength * np.abs(p @ data.v).sum()

    answers, state = [], None
    for _ in range(4):
        p, state = analytic_continuation._sparse_fit(data, strength, state)
        answers.append(objective(p))
    np.testing.assert_allclose(answers[0], answers[-1], rtol=2e-2)
    rng = np.random.default_rng(0)
    for other in [*rng.dirichlet(np.full(len(p), 0.3), 50), np.full(len(p), 1 / len(p))]:
        for share in (1e-3, 1e-2, 0.1, 1.0):
            assert objective((1 - share) * p + share * other) > answers[-1]


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
        analytic_continuation.maximum_entropy(**arguments)


def test_a_setting_that_is_not_positive_is_named():
    with pytest.raises(ValueError, match="`noise`.*0.0"):
        tasks.get("analytic_continuation", noise=[0.1, 0.0])
