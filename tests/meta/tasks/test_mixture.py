import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from meta import random, tasks
from meta.tasks.families.flow import RealNVP
from meta.tasks.families.quadratic import Quadratic
from meta.tasks.mixture import Mixture, scored
from meta.tasks.sampling import distribution
from meta.tasks.scoring import curves, references
from meta.tasks.scoring.measured import identify
from meta.tasks.scoring.normalized import AdamSteps, Normalized
from meta.tasks.scoring.references import Reference

QUADRATICS = {"quadratic": 1.0}


@pytest.fixture
def known(monkeypatch):
    """References of the first 40 quadratics: each third too slow, each fifth not trainable."""
    configs = [distribution.config("quadratic", number) for number in range(40)]
    found = {}
    for i, config in enumerate(configs):
        final = 2.0 if i % 5 == 0 else 0.5
        found[identify(config)] = Reference(2.0, final, 0.1, 3.0 if i % 3 == 0 else 1.0)
    monkeypatch.setattr(references.MEASURED, "known", lambda data_dir=None: found)
    return configs


def test_tasks_are_those_that_adam_trains_within_the_budget(known):
    chosen = Mixture(QUADRATICS, num_tasks=40, milliseconds=2.0).configs()
    assert chosen == [c for i, c in enumerate(known) if i % 3 and i % 5]
    fewer = Mixture(QUADRATICS, num_tasks=20, milliseconds=2.0).configs()
    assert fewer == chosen[: len(fewer)]
    assert len(Mixture(QUADRATICS, num_tasks=40).configs()) == 32


def test_large_tasks_are_mixed_in_as_often_as_their_weight_says():
    mixture = Mixture({"image_mlp": 2.0}, num_tasks=12, large={"image_mlp": 0.5, "table_mlp": 0.5})
    found = list(mixture.candidates())
    small = [distribution.config("image_mlp", i) for i in range(8)]
    assert [config for config in found if config in small] == small
    others = [config for config in found if config not in small]
    for family in ("image_mlp", "table_mlp"):
        large = [distribution.config(family, i, "train_scale") for i in range(2)]
        assert [config for config in others if config.family == family] == large
    assert Mixture.parse('{"families": {"image_mlp": 1}, "large": {"image_mlp": 1}}').large
    # Those are also looked at before a run starts, as they need the most memory.
    examples = [distribution.config(name, 0, "train_scale") for name in ("image_mlp", "table_mlp")]
    assert mixture.examples() == [small[0], *examples]
    with pytest.raises(ValueError, match="`large` must be some of .* Received: quadratic"):
        Mixture(large={"quadratic": 1.0})
    with pytest.raises(TypeError, match="`large` must be a dict"):
        Mixture(large=["image_mlp"])


def test_a_task_whose_curve_does_not_fall_is_left_out(known, monkeypatch):
    flat, falling = [1.0] * len(curves.KNOTS), list(np.linspace(2.0, 1.0, len(curves.KNOTS)))
    found = {identify(c): flat if i == 2 else falling for i, c in enumerate(known)}
    monkeypatch.setattr(curves.MEASURED, "known", lambda data_dir=None: found)
    mixture = Mixture(QUADRATICS, num_tasks=5, score="adam_steps")
    assert mixture.configs() == [known[i] for i in (1, 3, 4)]
    assert sum(weight for _, weight in mixture.build().values()) == 3


def test_programs_are_drawn_as_often_as_they_have_tasks(known):
    programs = Mixture(QUADRATICS, num_tasks=40).build()
    assert sum(weight for _, weight in programs.values()) == 32
    assert {name.partition("/")[0] for name in programs} == {"quadratic"}
    for task, weight in programs.values():
        assert task.num_variants == weight


def test_weights_are_shares_of_the_tasks(monkeypatch):
    class Known(dict):
        def get(self, key):
            return Reference(2.0, 1.0, 0.1, 1.0)

    monkeypatch.setattr(references.MEASURED, "known", lambda data_dir=None: Known())
    chosen = Mixture({"image_mlp": 3.0, "quadratic": 1.0}, num_tasks=40).configs()
    drawn = [config.family for config in chosen]
    assert (drawn.count("image_mlp"), drawn.count("quadratic")) == (30, 10)
    # Of all families, equally, they are the tasks of the seeds; and fewer are the first of more.
    everything = Mixture(num_tasks=50).configs()
    assert everything == [tasks.sample_config(seed) for seed in range(50)]
    assert chosen[:7] == Mixture({"image_mlp": 3.0, "quadratic": 1.0}, num_tasks=7).configs()


@pytest.mark.parametrize(
    ("number", "text"), [(41, "1 of 41.*no reference"), (1, "No task of the 1")]
)
def test_without_references_or_tasks_it_says_so(known, number, text):
    with pytest.raises(ValueError, match=text):
        Mixture(QUADRATICS, num_tasks=number, milliseconds=2.0).configs()


def test_the_score_is_one_at_the_start_and_zero_at_the_reference(monkeypatch):
    config = distribution.config("quadratic", 1)
    other = config._replace(setting={**config.setting, "noise": 0.5})
    found = {
        identify(config): Reference(2.0, 1.0, 0.1, 1.0),
        identify(other): Reference(30.0, 10.0, 0.1, 1.0),
    }
    monkeypatch.setattr(references.MEASURED, "known", lambda data_dir=None: found)
    task = scored([config, other], "loss")
    setting = task.draw(random.seed(0), 4, tf.constant([0, 0, 1, 1]))
    scores = task.score(tf.constant([[2.0, 1.0, 30.0, 20.0], [1.5, 0.5, 10.0, 0.0]]), setting)
    of_thirty = np.log(3.0)
    expected = [
        [1.0, 0.0, 1.0, np.log(2.0) / of_thirty],
        [np.log(1.5) / np.log(2.0), -1.0, 0.0, np.log(1e-3) / of_thirty],
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    # What the optimizer sees is not normalised.
    plain = tasks.build([config, other])
    params = task.init(random.seed(1), 4, setting)
    data = task.batch("train", random.seed(2), 4, setting)
    np.testing.assert_array_equal(
        task.loss(params, data, setting), plain.loss(params, data, setting)
    )


def test_what_adam_hardly_lowers_is_not_blown_up():
    task = Normalized(Quadratic(), [1.05], [1.0])
    setting = task.draw(random.seed(0), 2)
    scores = task.score(tf.constant([1.0, np.exp(0.1)]), setting)
    np.testing.assert_allclose(scores, [0.0, 1.0], atol=1e-6)


def test_losses_without_a_floor_are_scored_by_differences():
    task = Normalized(RealNVP(), [2.0], [-1.0])
    scores = task.score(tf.constant([2.0, -1.0, -4.0]), task.draw(random.seed(0), 3))
    np.testing.assert_allclose(scores, [1.0, 0.0, -1.0], atol=1e-6)
    with pytest.raises(ValueError, match="loss_floor"):
        Normalized(Quadratic(), [2.0], [-1.0])


def test_the_score_in_steps_is_the_logarithm_of_adams():
    losses = [9.0, 8.0, 8.0, 5.0, 4.0, 4.0, 3.0]
    task = AdamSteps(Quadratic(), [losses])
    setting = task.draw(random.seed(0), 9)
    given = [9.0, 8.5, 8.0, 6.5, 5.0, 4.5, 3.0, 2.0, 12.0]
    steps = [1.0, 3.0**0.5, 3.0, (10 * 30) ** 0.5, 30.0, (30 * 100) ** 0.5, 1000.0]
    expected = [*(1 - np.log(steps) / np.log(1000.0)), -np.log(7 / 6), 1.5]
    np.testing.assert_allclose(task.score(tf.constant(given), setting), expected, atol=1e-6)
    np.testing.assert_allclose(
        task.score(tf.constant([given, given[::-1]]), setting),
        [expected, expected[::-1]],
        atol=1e-6,
    )
    for wrong in ([losses[::-1]], [losses[:-1]], [losses, losses]):
        with pytest.raises(ValueError, match="`losses`"):
            AdamSteps(Quadratic(), wrong)


def test_a_task_that_adam_hardly_lowers_does_not_outweigh_others():
    task = AdamSteps(Quadratic(), [[0.604, 0.6, 0.6, 0.6, 0.6, 0.597, 0.594]])
    setting = task.draw(random.seed(0), 2)
    scores = task.score(tf.constant([0.1, 0.0]), setting)
    np.testing.assert_allclose(scores, [-np.log(50.4), -np.log(60.4)], rtol=1e-3)


def test_curves_are_the_lowest_that_a_learning_rate_has_reached(tmp_path, monkeypatch):
    steps = np.arange(1000.0)
    slow, fast = 10.0 - 0.009 * steps, np.where(steps < 30, 10.0 - 0.2 * steps, 4.0 + 0 * steps)
    diverged = np.where(steps < 2, 10.0, np.nan)
    found = curves.envelope(np.stack([slow, fast, diverged], axis=1))
    assert found[0] == 10.0
    np.testing.assert_allclose(found[3], 10.0 - 0.2 * 24.5, rtol=1e-4)
    np.testing.assert_allclose(found[4:], [4.0, 4.0, slow[666:].mean()], rtol=1e-4)
    # A mixture that is scored in steps asks for them, and computes what it lacks.
    monkeypatch.setattr(curves.MEASURED, "shipped", functools.cache(dict))
    mixture = Mixture(QUADRATICS, num_tasks=2, score="adam_steps")
    with pytest.raises(ValueError, match="2 of 2.*curve"):
        mixture.configs(tmp_path)
    mixture.complete(tmp_path)
    content = json.loads((tmp_path / "lopt_keras" / "curves.json").read_text())
    assert set(content) == {identify(c) for c in mixture.candidates()}
    assert all(isinstance(task, AdamSteps) for task, _ in mixture.build(tmp_path).values())
    for losses in content.values():
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.5 * losses[0]


def test_references_are_what_adam_reaches(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(references.MEASURED, "shipped", functools.cache(dict))
    configs = [distribution.config("quadratic", number) for number in range(3)]
    found = references.MEASURED.complete(configs, tmp_path)
    assert "references of 3 tasks: 100%" in capsys.readouterr().err
    for reference in found:
        assert reference.learning_rate in references.LEARNING_RATES
        assert reference.is_trainable
        assert reference.milliseconds > 0
    # A quadratic with trace 1 starts at half the squared distance, on average.
    for config, reference in zip(configs, found, strict=True):
        assert 0.1 < reference.initial / (0.5 * config.setting["start_scale"] ** 2) < 4
    file = tmp_path / "lopt_keras" / "references.json"
    content = json.loads(file.read_text())
    assert content == {identify(c): list(r) for c, r in zip(configs, found, strict=True)}
    # What is known is not computed again.
    monkeypatch.setattr(references.MEASURED, "_measure", None)
    again = references.MEASURED.complete(configs[:1] + configs[2:], tmp_path)
    assert again == found[:1] + found[2:]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"a": 1}', '{"a": [1]}', '{"a": [1, 2, 3, "x"]}']
)
def test_damaged_references_are_named_and_computed_anew(tmp_path, content, monkeypatch):
    file = tmp_path / "lopt_keras" / "references.json"
    file.parent.mkdir()
    file.write_text(content)
    monkeypatch.setattr(references.MEASURED, "shipped", functools.cache(dict))
    reference = Reference(2.0, 1.0, 0.1, 1.0)
    monkeypatch.setattr(references.MEASURED, "_measure", lambda configs, _: [reference])
    with pytest.warns(UserWarning, match=f"{file}.*damaged.*computed anew"):
        found = references.MEASURED.complete([distribution.config("quadratic", 0)], tmp_path)
    assert found == [reference]
    assert list(references.MEASURED.known(tmp_path).values()) == found


def test_a_mixture_computes_what_it_lacks_and_says_by_what_it_scores(tmp_path, monkeypatch):
    mixture = Mixture(QUADRATICS, num_tasks=2)
    monkeypatch.setattr(references.MEASURED, "shipped", functools.cache(dict))
    digests = set()
    for i in range(2):
        reference = Reference(2.0 + i, 1.0, 0.1, 1.0)
        monkeypatch.setattr(
            references.MEASURED, "_measure", lambda configs, _, r=reference: [r] * len(configs)
        )
        mixture.complete(tmp_path / str(i))
        digests.add(mixture.references_digest(tmp_path / str(i)))
        assert len(mixture.configs(tmp_path / str(i))) == 2
    assert len(digests) == 2


@pytest.mark.parametrize(
    "text",
    [
        "nope",
        "{",
        "[]",
        '{"nope": 1}',
        '{"num_tasks": 0}',
        '{"num_tasks": 100000000000}',
        '{"num_tasks": 1e11}',
        '{"families": {"quadratic": Infinity}}',
        '{"families": {"nope": 1}}',
        '{"families": {"quadratic": 0}}',
        '{"families": []}',
        '{"milliseconds": -1}',
        '{"score": "nope"}',
    ],
)
def test_wrong_specifications_are_refused(text):
    with pytest.raises(ValueError, match="`tasks`"):
        Mixture.parse(text)


def test_a_specification_is_a_family_or_json():
    assert Mixture.parse("quadratic") == Mixture({"quadratic": 1.0})
    text = '{"families": {"quadratic": 2}, "num_tasks": 7, "milliseconds": 0.5}'
    assert Mixture.parse(text) == Mixture({"quadratic": 2}, 7, 0.5)
