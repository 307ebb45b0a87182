import numpy as np
import pytest
from problems import Quadratic, small_mlp

from lopt_keras import rules
from meta import random
from meta.evaluation import candidates, comparison, learning_rates
from meta.inner.training import InnerTraining

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("comparison")


@pytest.fixture(scope="module")
def curves():
    rule = rules.SGD(learning_rate=1e-6)
    return comparison.compare(small_mlp(), rule, rule.init_theta(), num_steps=60, seed=0)


def test_every_baseline_is_tuned_and_runs_on_the_same_problems(curves):
    assert len(curves) == 4
    learned, *others = curves.values()
    assert next(iter(curves)) == "learned"
    for name, label, own in zip(comparison.COMPARED, list(curves)[1:], others, strict=True):
        assert label.startswith(f"{name}, learning rate ")
        assert own.train.shape == own.held_out.shape == (60, 8)
        # Same initial parameters, same first batches.
        np.testing.assert_allclose(own.train[0], learned.train[0], rtol=1e-6)
        np.testing.assert_allclose(own.held_out[0], learned.held_out[0], rtol=1e-6)
        # The stand-in for a learned rule does not move, the tuned baselines do.
        assert own.train[-6:].mean() < 0.8 * learned.train[-6:].mean()


def test_tuning_finds_the_best_of_the_grid():
    rule = rules.SGD(learning_rate=1e-6)
    curves = comparison.compare(Quadratic(), rule, rule.init_theta(), num_steps=30, seed=0)
    rates = learning_rates.grid(candidates.BASELINES["SGD, momentum"].middle, 9)
    np.testing.assert_allclose(np.diff(np.log10(rates)), 0.5, atol=1e-3)
    losses = {}
    for rate in rates:
        x, m = 1.0, 0.0
        history = []
        for _ in range(30):
            history.append(x * x)
            m = 0.9 * m - rate * 2.0 * x
            x += m
        losses[rate] = np.mean(history[-2:])
    best = min(losses, key=losses.get)
    sgd = curves[f"SGD, momentum, learning rate {best:.2g}"]
    np.testing.assert_allclose(sgd.held_out[-2:].mean(), losses[best], rtol=1e-3)


def test_variants_are_drawn_or_chosen():
    """And a theta may have several entries."""
    rule = rules.MLP(hidden_size=2, hidden_layers=1, momentum_decays=(0.9,))
    task, thetas = small_mlp(init_scale=[0.1, 3.0]), [rule.init_theta(0), rule.init_theta(1)]
    training = InnerTraining(task, rule, 2, 8, num_steps=2, signals_known=True)
    drawn = [curves.held_out[0] for curves in training(thetas, random.seed(0))]
    np.testing.assert_allclose(*drawn, rtol=1e-6)  # The same problems.
    chosen = InnerTraining(task, rule, 2, 8, num_steps=2, signals_known=True)
    small, large = (chosen(thetas, random.seed(0), i)[0].held_out[0] for i in (0, 1))
    assert small.mean() < large.mean()
    assert (drawn[0].min(), drawn[0].max()) != (small.min(), small.max())
    mixed = chosen(thetas, random.seed(0), np.arange(8) % 2)[1].held_out[0]
    np.testing.assert_allclose(mixed[::2], small[::2], rtol=1e-6)
    np.testing.assert_allclose(mixed[1::2], large[1::2], rtol=1e-6)


def test_summary(curves):
    summary = comparison.summarise(curves)
    found, learned = summary["learned"], curves["learned"]
    np.testing.assert_allclose(found["mean_train_loss"]["mean"], learned.train.mean(), rtol=1e-5)
    final = learned.held_out[-3:].mean(axis=0)
    np.testing.assert_allclose(found["final_test_loss"]["mean"], final.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["final_test_loss"]["std"], final.std(ddof=1), rtol=1e-4)


def test_picture(curves, tmp_path):
    file = tmp_path / "curves.png"
    comparison.plot(curves, "title", file)
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000
