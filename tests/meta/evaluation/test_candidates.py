import dataclasses

import numpy as np
import pytest

from lopt_keras import controller, rules
from meta.evaluation import candidates, learning_rates


def test_every_grid_has_half_decades_around_the_middle():
    for baseline in candidates.BASELINES.values():
        rates = learning_rates.grid(baseline.middle, 9)
        np.testing.assert_allclose(np.diff(np.log10(rates)), 0.5, atol=2e-3)
        assert rates[4] == baseline.middle
        assert isinstance(baseline.rule(learning_rate=rates[0]), rules.UpdateRule)


def test_a_rule_whose_code_changes_is_another(monkeypatch):
    before = {
        name: candidates.HandDesigned(name, rules.Adam, 0.01).identity for name in ("Adam", "again")
    }
    assert before["Adam"] == before["again"]
    learned = candidates.learned("default")
    assert learned.identity == candidates.learned("default").identity
    monkeypatch.setattr(controller, "_ROUNDING", 0.5)  # Of what counts after step 100.
    changed = candidates.learned("default")
    assert changed.identity != learned.identity
    assert changed.sha256 == learned.sha256
    original = rules.Adam.update_tensor

    def twice(*args):
        update, state = original(*args)
        return 2.0 * update, state

    monkeypatch.setattr(rules.Adam, "update_tensor", twice)
    assert candidates.HandDesigned("Adam", rules.Adam, 0.01).identity != before["Adam"]


@pytest.mark.parametrize("where", ["no horizon is known", "the horizon has passed", "convolutions"])
def test_each_situation_counts_for_what_a_rule_does(where, monkeypatch):
    before = candidates.HandDesigned("one", rules.CosineAdamW, 0.01).identity
    original = rules.CosineAdamW.update_tensor

    def changed(self, theta, state, message, grad, param, signals):
        update, state = original(self, theta, state, message, grad, param, signals)
        here = {
            "no horizon is known": not signals.total_steps.known.numpy().any(),
            "the horizon has passed": signals.step[0] > 2000,
            "convolutions": len(param.shape) == 5,
        }[where]
        return (2.0 if here else 1.0) * update, state

    monkeypatch.setattr(rules.CosineAdamW, "update_tensor", changed)
    assert candidates.HandDesigned("one", rules.CosineAdamW, 0.01).identity != before


@pytest.mark.parametrize("baseline", candidates.BASELINES.values(), ids=lambda x: x.name)
def test_a_learning_rate_changes_what_a_baseline_does(baseline):
    other = dataclasses.replace(baseline, middle=2.0 * baseline.middle)
    assert baseline.identity["behaviour"] != other.identity["behaviour"]


def test_learned_weights_by_name_and_label():
    shipped = candidates.learned("default")
    assert shipped.name == "default"
    assert set(shipped.theta) == set(shipped.rule.theta_shapes())
    labelled = candidates.learned("mine=default")
    assert labelled.name == "mine"
    assert labelled.identity == shipped.identity
    with pytest.raises(ValueError, match="nowhere"):
        candidates.learned("mine=nowhere")


def test_a_keras_optimizer_by_import_path():
    plain = candidates.from_import_path("keras.optimizers:Adamax")
    assert (plain.name, plain.is_tuned) == ("Adamax", True)
    np.testing.assert_allclose(plain.middle, 0.001)
    text = '{"optimizer": "keras.optimizers:SGD", "config": {"learning_rate": 0.5}, "name": "x"}'
    sgd = candidates.from_import_path(text)
    assert sgd.name == "x"
    np.testing.assert_allclose(learning_rates.grid(sgd.middle, 3), [0.158, 0.5, 1.58])
    assert sgd.identity != plain.identity


@pytest.mark.parametrize(
    "text",
    [
        "keras.optimizers",
        "keras.optimizers:Nonsense",
        "no.such.module:Adam",
        "keras.layers:ReLU",
        '{"optimizer": "keras.optimizers:Adam", "config": {"nonsense": 1}}',
        '{"optimizer": "keras.optimizers:Adam", "tune": false}',
        '{"config": {}}',
        '{"optimizer": "keras.optimizers:Adam", "name": 3}',
        '{"optimizer": "keras.optimizers:Adam", "name": ""}',
        '{"optimizer": "keras.optimizers:Adam", "tuned": "no"}',
        '{"optimizer": "keras.optimizers:Adam", "config": [1]}',
        '{"optimizer": ["keras.optimizers:Adam"]}',
        "{",
    ],
)
def test_what_is_no_keras_optimizer_is_refused(text):
    with pytest.raises(ValueError, match="`optimizer` must be"):
        candidates.from_import_path(text)
