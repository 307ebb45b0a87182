import numpy as np
import pytest
import tensorflow as tf
from problems import random_table

from meta import label_noise, random, tasks
from meta.tasks.families import mislabeled

SEED = random.seed(4)


@pytest.mark.parametrize(("r0", "r1"), [(0.0, 0.0), (0.1, 0.4), (0.45, 0.3), (0.0, 0.8)])
def test_the_corrected_decision_is_the_clean_bayes_decision(r0, r1):
    # Two normal classes of unequal prior: the posterior is known.
    x = np.linspace(-6, 6, 2001)
    clean = 1 / (1 + np.exp(-(2.0 * x - 0.7)))
    noisy = label_noise.noisy_posterior(clean, r0, r1)
    corrected = noisy > label_noise.threshold(r0, r1)
    np.testing.assert_array_equal(corrected, clean > 0.5)
    np.testing.assert_allclose(label_noise.clean_posterior(noisy, r0, r1), clean, atol=1e-12)
    if r0 != r1:
        assert ((noisy > 0.5) != (clean > 0.5)).mean() > 0.005


def test_the_noisy_posterior_is_the_frequency_of_noisy_labels():
    rng = np.random.RandomState(0)
    labels = tf.constant(rng.random_sample(20000) < 0.3, tf.int32)
    r0, r1 = tf.constant([0.1, 0.0]), tf.constant([0.4, 0.2])
    noisy = mislabeled.flip(labels, r0, r1, 2, SEED)
    prior = np.mean(labels)
    for i in range(2):
        expected = label_noise.noisy_posterior(prior, float(r0[i]), float(r1[i]))
        np.testing.assert_allclose(np.mean(noisy[i]), expected, atol=0.01)


def test_many_classes_flip_as_their_transitions_say():
    labels = tf.constant(np.arange(40000) % 4, tf.int32)
    noisy = mislabeled.flip(labels, tf.constant([0.1]), tf.constant([0.4]), 4, SEED)[0]
    matrix = label_noise.transitions(0.1, 0.4, 4)
    for k in range(4):
        frequencies = np.bincount(noisy[labels == k], minlength=4) / 10000
        np.testing.assert_allclose(frequencies, matrix[k], atol=0.015)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(1 - np.diag(matrix), [0.1, 0.2, 0.3, 0.4])


def test_posteriors_of_many_classes_return_from_those_of_labels():
    posteriors = np.random.RandomState(0).dirichlet(np.ones(4), 50)
    matrix = label_noise.transitions(0.1, 0.6, 4)
    noisy = label_noise.noisy_posteriors(posteriors, matrix)
    np.testing.assert_allclose(noisy[0], matrix.T @ posteriors[0])
    np.testing.assert_allclose(label_noise.clean_posteriors(noisy, matrix), posteriors)
    assert (noisy.argmax(axis=1) != posteriors.argmax(axis=1)).any()
    # For two classes it is the formula with r0 and r1.
    two = label_noise.noisy_posteriors([0.7, 0.3], label_noise.transitions(0.1, 0.4))
    np.testing.assert_allclose(two[1], label_noise.noisy_posterior(0.3, 0.1, 0.4))


@pytest.mark.parametrize(
    ("r0", "r1", "known"),
    [(0.1, 0.4, {"r0": 0.1}), (0.1, 0.4, {"r1": 0.4}), (0.2, 0.2, {}), (0.0, 0.0, {})],
)
def test_flip_rates_follow_from_the_priors(r0, r1, known):
    label_prior = float(label_noise.noisy_posterior(0.3, r0, r1))
    found = label_noise.flip_rates(0.3, label_prior, **known)
    np.testing.assert_allclose(found, (r0, r1), atol=1e-12)


def test_what_no_flip_rates_can_be_is_named():
    for call, text in (
        (lambda: label_noise.threshold(0.5, 0.5), "`r0` and `r1`.*0.5"),
        (lambda: label_noise.threshold(-0.1, 0.5), "`r0`.*-0.1"),
        (lambda: label_noise.flip_rates(0.5, 0.4), "1/2"),
        (lambda: label_noise.flip_rates(0.3, 0.1), "No flip rates"),
        (lambda: label_noise.flip_rates(0.3, 0.3, 0.1, 0.1), "At most one"),
        (lambda: label_noise.transitions(0.1, 0.1, 1), "`num_classes`.*1"),
        (lambda: label_noise.clean_posteriors([0.5, 0.5], np.full((2, 2), 0.5)), "singular"),
        (lambda: tasks.get("mislabeled", dataset=random_table(2), r1=1.0), "`r1`.*1.0"),
        (lambda: tasks.get("mislabeled", dataset=random_table(None)), "`dataset`.*classes"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_an_example_has_one_training_label_for_good():
    dataset = random_table(3)
    task = tasks.get("mislabeled", dataset=dataset, r0=0.3, r1=0.5, batch_size=400)
    setting = task.draw(SEED, 2)
    right = {x.tobytes(): y for x, y in zip(*dataset.train, strict=True)}
    seen = [{}, {}]
    for number in range(2):
        inputs, labels = task.batch("train", random.seed(number), 2, setting)
        for problem in range(2):
            for x, y in zip(inputs[problem].numpy(), labels[problem].numpy(), strict=True):
                assert seen[problem].setdefault(x.tobytes(), y) == y
    assert seen[0].keys() == right.keys()
    wrong = [np.mean([labels[x] != right[x] for x in right]) for labels in seen]
    assert 0.2 < min(wrong) < max(wrong) < 0.65
    assert seen[0] != seen[1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_are_right_where_losses_are_measured(split):
    dataset = random_table(3)
    task = tasks.get("mislabeled", dataset=dataset, r0=0.5, r1=0.5, batch_size=100)
    right = {x.tobytes(): y for x, y in zip(*dataset.split(split), strict=True)}
    inputs, labels = task.batch(split, SEED, 1, task.draw(SEED, 1))
    assert all(
        right[x.tobytes()] == y for x, y in zip(inputs[0].numpy(), labels[0].numpy(), strict=True)
    )
