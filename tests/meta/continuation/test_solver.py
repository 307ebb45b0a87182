import keras
import numpy as np
import pytest
import tensorflow as tf

from meta import random
from meta.continuation import evaluation, solving, spectra, training
from meta.continuation.problem import Problem
from meta.continuation.solver import UnrolledSolver, compress, neighbours

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("solver")

SMALL = {"num_frequencies": 32, "iterations": 3, "channels": 8}


@pytest.fixture(scope="module")
def solver():
    keras.utils.set_random_seed(3)
    solver = UnrolledSolver(**SMALL)
    solver.build(None)
    for variable in solver.trainable_variables:
        variable.assign_add(0.1 * keras.random.normal(variable.shape, seed=1))
    return solver


def inputs(level=1e-3, num=5, kernel="fermionic"):
    test = evaluation.make(num, level, 32, 11, kernel=kernel)
    problems = Problem.all_of(test.kernel, test.correlations, test.noise)
    return test, solving.inputs(problems)


@pytest.mark.parametrize("level", [1e-2, 1e-5])
@pytest.mark.parametrize("kernel", ["fermionic", "bosonic", "laplace"])
def test_answers_are_spectra_for_any_kernel_and_noise(solver, kernel, level):
    _, given = inputs(level, kernel=kernel)
    answers, bars = solver(given, every=True)
    assert answers.shape == (3, 1, 5, 32)
    assert bars.shape == (1, 5, 32, 2)
    assert answers.numpy().min() >= 0
    assert bars.numpy().min() >= 0
    np.testing.assert_allclose(answers.numpy().sum(axis=-1), 1.0, atol=1e-5)
    last, same = solver(given)
    np.testing.assert_array_equal(last, answers[-1])
    np.testing.assert_array_equal(bars, same)


def test_a_surrogate_is_the_minimum_of_its_functional(solver):
    """What the network reads in the first iteration, against a solution in closed form."""
    _, given = inputs()
    read = []

    class Spy:
        def __call__(self, arguments):
            read.append(arguments[0].numpy())
            return arguments[1], tf.zeros((1, 5, 8, 4))

    own, solver._steps = solver._steps, [Spy()]
    try:
        solver(given)
    finally:
        solver._steps = own
    s, b, v = (given[k].numpy()[0] for k in ("singular_values", "data", "basis"))
    a = s[0][:, None].astype(float) * v.T / 32
    for j, rho in enumerate(np.exp(solver._log_rho.numpy()[0])):
        z = np.ones(32)
        exact = np.linalg.solve(a.T @ a + rho * np.eye(32), a.T @ b[2] + rho * z) - z
        found = read[0][0, 2].reshape(8, 9, 4)[:, 1 + j].reshape(32)
        np.testing.assert_allclose(found, compress(exact), rtol=2e-2, atol=2e-3)


def test_the_singular_basis_may_have_any_signs_and_zeros_behind(solver):
    _, given = inputs()
    plain, _ = solver(given)
    rank = given["data"].shape[-1]
    sign = np.where(np.arange(rank) % 2, 1.0, -1.0).astype("float32")
    other = {**given, "data": given["data"] * sign, "basis": given["basis"] * sign}
    other = {k: tf.pad(x, [[0, 0], [0, 0], [0, 3]]) for k, x in other.items()}
    np.testing.assert_allclose(solver(other)[0], plain, atol=2e-5)


def test_a_spectrum_does_not_depend_on_its_neighbours_in_the_batch(solver):
    _, given = inputs()
    alone = {k: x if k == "basis" else x[:, 2:3] for k, x in given.items()}
    np.testing.assert_allclose(solver(alone)[0][0, 0], solver(given)[0][0, 2], atol=1e-6)


def test_kernels_of_a_batch_keep_apart(solver):
    _, first = inputs(1e-3)
    _, second = inputs(1e-3, kernel="laplace")
    rank = max(x["data"].shape[-1] for x in (first, second))
    pads = [
        {k: tf.pad(x, [[0, 0], [0, 0], [0, rank - x.shape[-1]]]) for k, x in given.items()}
        for given in (first, second)
    ]
    both = {k: tf.concat([p[k] for p in pads], axis=0) for k in first}
    found = solver(both)[0]
    np.testing.assert_allclose(found[0], solver(first)[0][0], atol=1e-5)
    np.testing.assert_allclose(found[1], solver(second)[0][0], atol=1e-5)


def test_neighbours_are_those_at_the_distance():
    x = tf.reshape(tf.range(1.0, 6.0), (1, 5, 1))
    np.testing.assert_array_equal(
        neighbours(x, 2)[0], [[0, 1, 3], [0, 2, 4], [1, 3, 5], [2, 4, 0], [3, 5, 0]]
    )


def test_a_config_makes_the_same_model():
    for shared in (True, False):
        solver = UnrolledSolver(**SMALL, shared=shared)
        solver.build(None)
        other = UnrolledSolver.from_config(solver.get_config())
        other.build(None)
        assert [w.shape for w in other.weights] == [w.shape for w in solver.weights]
    assert len({w.path for w in solver.weights}) == len(solver.weights)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_frequencies": 30}, ValueError),
        ({"iterations": 0}, ValueError),
        ({"channels": 1.5}, TypeError),
    ],
)
def test_a_config_that_fits_nothing_is_named(change, error):
    with pytest.raises(error, match=f"`{next(iter(change))}`"):
        UnrolledSolver(**SMALL | change)


def small_trainer(seed=0, noise=training.NOISE):
    keras.utils.set_random_seed(5)
    rng = np.random.default_rng(0)
    operators = training.Operators.stack(
        training.operator(rng, 32, num_times=32, reach=60.0) for _ in range(4)
    )
    # Most of the time of these tests is XLA's, for the gradient of the unrolled iterations.
    solver = UnrolledSolver(num_frequencies=32, iterations=2, channels=4)
    solver.build(None)
    return training.Trainer(solver, operators, 2, 8, seed, noise)


def test_training_measures_what_it_says():
    trainer = small_trainer(noise=(1e-2, 3e-2))
    given, truth = trainer.sample(random.seed(1))
    assert truth.shape == (2, 8, 32)
    fitted = given["singular_values"] * tf.matmul(truth, given["basis"])
    residual = (given["data"] - fitted).numpy()[given["singular_values"].numpy() > 0]
    # So much noise hides that the truth is of a finer grid.
    assert 0.9 < np.sqrt(np.median(np.square(residual))) / 0.6745 < 1.1


def test_losses_are_their_formulas():
    rng = np.random.default_rng(0)
    answers, truth = (rng.dirichlet(np.ones(6), (n, 1, 4)) for n in (3, 1))
    truth = truth[0]
    bars = rng.uniform(0, 0.2, (1, 4, 6, 2))
    errors, relative, pinball = training.losses(
        *(tf.constant(x, tf.float32) for x in (answers, bars, truth))
    )
    exact = evaluation.relative_errors(answers, truth).mean(axis=(1, 2))
    np.testing.assert_allclose(relative, exact, rtol=1e-5)
    exact = exact + 10.0 * evaluation.moved(answers, truth).mean(axis=(1, 2))
    np.testing.assert_allclose(errors, exact, rtol=1e-5)
    missed = 6 * (np.abs(answers[-1] - truth)[..., None] - bars)
    q = np.array([0.68, 0.95])
    np.testing.assert_allclose(
        pinball, np.mean(np.where(missed > 0, q * missed, (q - 1) * missed)), rtol=1e-5
    )


@pytest.fixture(scope="module")
def trained():
    """A trainer after its training, and what `fit` returned."""
    trainer = small_trainer()
    return trainer, training.fit(trainer, 150)


def test_training_improves(trained):
    errors = trained[1].history["error"]
    assert np.mean(errors[-20:]) < 0.85 * np.mean(errors[:10])


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 6:
            raise KeyboardInterrupt


def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(trained, tmp_path):
    def backup(save_freq):
        file = str(tmp_path / "backup")
        return keras.callbacks.BackupAndRestore(file, save_freq, double_checkpoint=True)

    killed, resumed = small_trainer(), small_trainer()
    with pytest.raises(KeyboardInterrupt):
        training.fit(killed, 150, callbacks=[backup("epoch"), Stop()])
    # It saves nothing more, which would take longer than its steps.
    history = training.fit(resumed, 150, callbacks=[backup(1000)])
    assert len(history.history["error"]) == 144
    for a, b in zip(trained[0].solver.weights, resumed.solver.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_solve_says_how_well_it_fits(solver):
    test, _ = inputs()
    solution = solving.solve(solver, test.kernel, test.correlations, test.noise)
    assert solution.weights.shape == (5, 32)
    assert solution.weights.min() >= 0
    np.testing.assert_allclose(solution.weights.sum(axis=1), 1.0, atol=1e-12)
    residual = (solution.weights @ test.kernel.T - test.correlations) / test.noise
    np.testing.assert_allclose(solution.chi2, np.square(residual).mean(axis=1), rtol=1e-6)
    assert (solution.exceeded[solution.chi2 > 3] < solving.SIGNIFICANT).all()
    one = solving.solve(solver, test.kernel, test.correlations[1], test.noise)
    np.testing.assert_allclose(one.weights[0], solution.weights[1], atol=1e-6)


def test_exceedance_is_a_share_of_noise():
    rng = np.random.default_rng(0)
    found = solving.exceedance(np.square(rng.normal(size=(4000, 20))).mean(axis=1), 20)
    np.testing.assert_allclose(np.quantile(found, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


def test_a_kernel_of_another_grid_is_named(solver):
    with pytest.raises(ValueError, match="`kernel` must have 32 columns.*16"):
        solving.solve(solver, np.ones((20, 16)), np.ones(20), 0.1)


def test_a_default_model_is_blurred_and_positive():
    weights = spectra.draw(random.seed(0), 4, 32).numpy()
    for blur in (0.0, 3.0):
        found = solving.as_default(weights, blur)
        assert found.min() > 0
        np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(solving.as_default(weights, 0.0), weights, atol=1e-4)
    peak = solving.as_default(np.eye(33)[16], 3.0)
    places = np.arange(33)
    assert abs(np.sqrt(np.sum(peak * (places - 16) ** 2)) - 3.0) < 0.1


def test_the_weights_that_ship_solve():
    """Far better than a flat spectrum, on spectra that training saw and did not see."""
    from meta.continuation import saving

    solver, metadata = saving.load()
    assert metadata["commit"]
    for families in (spectra.FAMILIES, spectra.UNSEEN):
        test = evaluation.make(64, 1e-3, 128, 77, families)
        solution = solving.solve(solver, test.kernel, test.correlations, test.noise)
        errors = evaluation.relative_errors(solution.weights, test.truth)
        flat = evaluation.relative_errors(np.full((64, 128), 1 / 128), test.truth)
        assert np.median(errors) < 0.5 * np.median(flat)
        assert solution.weights.min() >= 0
        np.testing.assert_allclose(solution.weights.sum(axis=1), 1.0, atol=1e-5)
