import numpy as np
import pytest
from problems import Quadratic, small_mlp

from lopt_keras import rules
from meta.evaluation import comparison


@pytest.fixture(scope="module")
def curves():
    rule = rules.SGD(learning_rate=1e-6)
    return comparison.compare(small_mlp(), rule, rule.init_theta(), num_steps=60, seed=0)


def test_every_baseline_is_tuned_and_runs_on_the_same_problems(curves):
    assert len(curves) == 4
    assert curves[0].name == "learned"
    for name, curve in zip(comparison.BASELINES, curves[1:], strict=True):
        assert curve.name.startswith(f"{name}, learning rate ")
        assert curve.train.shape == curve.test.shape == (60, 8)
        # Same initial parameters, same first batches.
        np.testing.assert_allclose(curve.train[0], curves[0].train[0], rtol=1e-6)
        np.testing.assert_allclose(curve.test[0], curves[0].test[0], rtol=1e-6)
        # The stand-in for a learned rule does not move, the tuned baselines do.
        assert curve.train[-6:].mean() < 0.8 * curves[0].train[-6:].mean()
    for _, grid in comparison.BASELINES.values():
        assert len(grid) == 9
        np.testing.assert_allclose(np.diff(np.log10(grid)), 0.5)


def test_tuning_finds_the_best_of_the_grid():
    rule = rules.SGD(learning_rate=1e-6)
    curves = comparison.compare(Quadratic(), rule, rule.init_theta(), num_steps=30, seed=0)
    losses = {}
    for rate in comparison.BASELINES["SGD"][1]:
        x, m = 1.0, 0.0
        history = []
        for _ in range(30):
            history.append(x * x)
            m = 0.9 * m - float(rate) * 2.0 * x
            x += m
        losses[float(rate)] = np.mean(history[-3:])
    best = min(losses, key=losses.get)
    assert curves[1].name == f"SGD, learning rate {best:.2g}"
    np.testing.assert_allclose(curves[1].test[-3:].mean(), losses[best], rtol=1e-3)


def test_summary(curves):
    summary = comparison.summarise(curves)
    metrics = summary["learned"]
    np.testing.assert_allclose(
        metrics["mean_train_loss"]["mean"], curves[0].train.mean(), rtol=1e-5
    )
    final = curves[0].test[-6:].mean(axis=0)
    np.testing.assert_allclose(metrics["final_test_loss"]["mean"], final.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["final_test_loss"]["std"], final.std(ddof=1), rtol=1e-4)


def test_picture(curves, tmp_path):
    file = tmp_path / "curves.png"
    comparison.plot(curves, "title", file)
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_smoothing_looks_back_only():
    losses = np.arange(200.0)[:, None]
    smooth = comparison.smooth(losses, 4)
    np.testing.assert_allclose(smooth[:5, 0], [0, 0.5, 1, 1.5, 2.5])
