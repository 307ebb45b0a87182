"""Trains with LearnedOptimizer under whatever KERAS_BACKEND says; writes what came out.

python tests/backends/train.py PART OUT.npz

PART is `fit` or `rules`.
"""

import os
import sys
import tempfile
import warnings

import keras
import numpy as np
from keras import ops

from lopt_keras import LearnedOptimizer, callbacks, rules
from lopt_keras.batch_statistics import BatchStatistics

RULES = {
    "mlp": rules.MLP(hidden_size=4, step_mult=0.01),
    "factored_mlp": rules.FactoredMLP(hidden_size=4, step_mult=0.01),
    "normalized_mlp": rules.NormalizedMLP(hidden_size=4, step_mult=0.01),
    "hierarchical": rules.Hierarchical(hidden_size=4, lstm_size=4, step_mult=0.01, exp_mult=0.01),
    "recurrent": rules.Recurrent(hidden_size=4, step_mult=0.01, log_sign=True),
    "learned_hyperparameters": rules.LearnedHyperparameters(
        hidden_size=4, learning_rate=0.01, learning_rate_range=2.0
    ),
    "scheduled": rules.Scheduled(
        rules.NormalizedMLP(hidden_size=4, step_mult=0.01), hidden_size=4, exp_mult=0.5
    ),
    "direction_mixture": rules.DirectionMixture(hidden_size=4),
    "adamw": rules.AdamW(learning_rate=0.01),
}
OPTIONS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "average": {"use_ema": True, "ema_overwrite_frequency": 7},
    "clipping": {"global_clipnorm": 0.5, "weight_decay": 0.01},
    "bfloat16": {"state_dtype": "bfloat16"},
}
STEPS = 50


def theta_of(rule):
    """A start with some noise, as parts of it are zero."""
    rng = np.random.default_rng(0)
    return {
        name: value + 0.1 * rng.standard_normal(np.shape(value)).astype("float32")
        for name, value in rule.init_theta().items()
    }


def descend(optimizer):
    """Noisy descent of a quadratic, with losses told and one gradient that is not finite."""
    rng = np.random.RandomState(0)
    start = [rng.standard_normal(shape) for shape in [(), (3,), (4, 6), (3, 3, 2, 4)]]
    variables = [keras.Variable(value.astype("float32")) for value in start]
    curvature = [np.exp(rng.standard_normal(value.shape)) for value in start]
    for i in range(STEPS):
        values = [ops.convert_to_numpy(v) for v in variables]
        grads = [
            c * x + 0.1 * rng.standard_normal(x.shape)
            for c, x in zip(curvature, values, strict=True)
        ]
        loss = sum((c * x**2).sum() for c, x in zip(curvature, values, strict=True))
        if i == 20:
            grads[1][0] = np.nan
        optimizer.observe(train_loss=float(loss))
        if i % 10 == 0:
            optimizer.observe(validation_loss=float(1.1 * loss))
        optimizer.apply([ops.convert_to_tensor(g, "float32") for g in grads], variables)
    assert optimizer.skipped_steps == 1
    return [ops.convert_to_numpy(v) for v in variables]


@keras.saving.register_keras_serializable()
class Deaf(LearnedOptimizer):
    """Hears no training losses, whatever the backend: the trainer of JAX has none to tell."""

    def scale_loss(self, loss):
        return keras.optimizers.Optimizer.scale_loss(self, loss)


def make_model(optimizer):
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(1)]
    )
    rng = np.random.RandomState(1)
    for variable in model.trainable_variables:
        variable.assign(0.5 * rng.standard_normal(variable.shape))
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs):
    rng = np.random.RandomState(2)
    x = rng.standard_normal((80, 6)).astype("float32")
    y = 2 * x[:, :1] - x[:, 1:2]
    model.fit(
        x,
        y,
        batch_size=16,
        epochs=epochs,
        shuffle=False,
        validation_data=(x, y),
        callbacks=[callbacks.Horizon(), callbacks.ValidationLoss(data=(x, y), every=3)],
        verbose=0,
    )


def fit_and_resume():
    """50 steps of the default optimizer in three calls of `fit`, saved and loaded half way."""
    model = make_model(Deaf())
    fit(model, 2)
    fit(model, 3)
    with tempfile.TemporaryDirectory() as folder:
        model.save(os.path.join(folder, "model.keras"))
        model = keras.models.load_model(os.path.join(folder, "model.keras"))
    fit(model, 5)
    assert int(model.optimizer.iterations) == STEPS
    return [ops.convert_to_numpy(v) for v in model.trainable_variables]


def batch_statistics():
    """Moving means and variances, computed anew."""
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.BatchNormalization()])
    rng = np.random.RandomState(3)
    for variable in model.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape))
    BatchStatistics((rng.standard_normal((80, 6)).astype("float32"),), 16).refresh(model)
    return [ops.convert_to_numpy(v) for v in model.non_trainable_variables]


def train_rules():
    """What each rule, and each option, makes of a quadratic."""
    results = {}
    for name, rule in RULES.items():
        optimizer = LearnedOptimizer(weights=theta_of(rule), rule=rule, total_steps=STEPS)
        results[name] = descend(optimizer)
    rule = RULES["factored_mlp"]
    for name, options in OPTIONS.items():
        results[name] = descend(LearnedOptimizer(theta_of(rule), rule, **options))
    return results


def main(part, out):
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "The update rule .* training loss")
    LearnedOptimizer()
    # Keras itself may import TensorFlow later, for its data pipelines.
    assert keras.backend.backend() == "tensorflow" or "tensorflow" not in sys.modules
    if part == "fit":
        results = {"fit": fit_and_resume(), "batch_statistics": batch_statistics()}
    else:
        results = train_rules()
    np.savez(out, **{f"{k}/{i}": x for k, values in results.items() for i, x in enumerate(values)})


if __name__ == "__main__":
    main(*sys.argv[1:])
