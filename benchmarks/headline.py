"""Learned optimizers against tuned hand-designed ones, in wall-clock time.

python benchmarks/headline.py --weights=learned=out/run/export --out_dir=out/headline

The task `patches_convnet` of meta-training as a Keras model: the same network, initial
parameters, batches of 32. All optimizers take their steps in the same way, each step
one XLA program, as in a `fit` with `jit_compile=True`, and on one seed see the same
batches. Seeds are run in turns, so that another load on the machine meets all of them.

- On the clock are the steps, and with `--observe_validation` for a rule that makes use of
  validation losses those too, a batch of 32 every 10 steps as in meta-training. Tracing and
  compilation, in the first step, are a figure of their own. Evaluations are off the clock.
- The validation loss is that of the whole validation split after every 20th step. It is
  smoothed: the mean over the last 5 evaluations, fewer at the start. The best validation
  loss is the lowest smoothed one. What is not finite, or above 10, counts as 10.
- An optimizer that keeps averages of the weights is evaluated with these.
- A learned optimizer runs for each of the `--horizons`, and knows it with `--horizon_known`.
- Hand-designed ones run for `--steps`, at the learning rate of the lowest best validation
  loss on seeds of their own, out of a grid of half-decades. Those with cosine decay to
  zero run for each of the horizons as well, tuned for each. `tuning.json` keeps these
  losses: another run with the same settings reads them.
- The target is the best validation loss of the tuned Adam on the same seed; Adam's own
  time to it is until it gets there first.

`--relative` changes the problem, and nothing of the learned optimizers: filters twice as
wide, one more layer, or the patches of other photographs.

Keras's Muon orthogonalises matrices only, of this network the output layer; the filters
of convolutions and the biases get AdamW. `FilterMuon` orthogonalises filters too. SOAP and
Muon at Adam's size are rules of this project, and take filters as matrices. SOAP's steps are
not compiled by XLA, whose QR decomposition takes a hundred times as long as TensorFlow's own.
"""

import contextlib
import dataclasses
import functools
import json
import os
import time

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer, pretrained, rules, saved_model
from meta import datasets, provenance, random, smoke, tasks
from meta.evaluation import metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_WEIGHTS = flags.DEFINE_list(
    "weights", "default", "Shipped weights or SavedModels, each also as label=weights."
)
_UNTRAINED = flags.DEFINE_bool(
    "untrained", False, "Also the rule of the first weights as it is before meta-training."
)
_HORIZONS = flags.DEFINE_list("horizons", "400,2000", "Steps of the learned optimizers.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Steps of the hand-designed ones.", lower_bound=1)
_RATES = flags.DEFINE_integer("rates", 9, "Learning rates, half-decades.", lower_bound=1)
_TUNING_SEEDS = flags.DEFINE_integer("tuning_seeds", 2, "Runs of each rate.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Fresh seeds; 0: tuning only.", lower_bound=0)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/headline", "For the picture and the figures.")
_RELATIVE = flags.DEFINE_enum(
    "relative", "none", ["none", "wide", "deep", "photographs"], "The problem, or a relative of it."
)
_BASELINES = flags.DEFINE_list("baselines", None, "Some of the hand-designed ones. Default: all.")
_KNOWN = flags.DEFINE_bool("horizon_known", True, "Learned optimizers know their steps.")
_OBSERVE = flags.DEFINE_bool("observe_validation", False, "Learned optimizers hear of it.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(horizons=["20"], steps=20, rates=1, tuning_seeds=1, seeds=1)

_FIRST_TUNING_SEED = 1000
_EVALUATE_EVERY, _SMOOTHED = 20, 5
_HEAR_EVERY = 10
_PHOTOGRAPHS = 12
_TARGET = "Adam"


class FilterMuon(keras.optimizers.Muon):
    """Muon that takes the filters of a convolution as one matrix: all axes but the last as one."""

    def _should_use_adamw(self, variable):
        return len(variable.shape) < 2

    def zeropower_via_newtonschulz5(self, x, steps):
        flat = super().zeropower_via_newtonschulz5(_as_matrix(x), steps)
        return keras.ops.reshape(flat, x.shape)

    def lr_adjust(self, x):
        return keras.ops.reshape(super().lr_adjust(_as_matrix(x)), x.shape)


def _as_matrix(x):
    return keras.ops.reshape(x, (-1, x.shape[-1]))


def of_rule(make_rule, jit_compile=True):
    """A hand-designed rule as a Keras optimizer."""

    def make(learning_rate):
        rule = make_rule(learning_rate=1.0)
        return LearnedOptimizer(
            weights=rule.init_theta(0),
            rule=rule,
            learning_rate=learning_rate,
            jit_compile=jit_compile,
        )

    return make


OPTIMIZERS = {
    "SGD": (functools.partial(keras.optimizers.SGD, momentum=0.9), 1e-2),
    "RMSprop": (keras.optimizers.RMSprop, 1e-3),
    "Adam": (keras.optimizers.Adam, 1e-3),
    "AdamW": (keras.optimizers.AdamW, 1e-3),
    "Muon": (keras.optimizers.Muon, 1e-3),
    "Averaged AdamW": (
        functools.partial(keras.optimizers.AdamW, use_ema=True, ema_momentum=0.98),
        1e-2,
    ),
    "FilterMuon": (FilterMuon, 1e-3),
    "SOAP": (of_rule(rules.SOAP, jit_compile=False), 1e-3),
    "Muon at Adam's size": (of_rule(rules.AdamSizedMuon), 1e-3),
}
"""The hand-designed optimizers, and the middle of the learning rates of each."""

_DECAYED = ("AdamW", "FilterMuon", "Muon at Adam's size", "SOAP")
_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_model(config, image_shape, num_classes):
    """The network of a task `patches_convnet` of that configuration."""
    layers = [keras.Input(image_shape)]
    for filters, stride in zip(config["filters"], config["strides"], strict=True):
        layers.append(keras.layers.Conv2D(filters, 3, stride, "same", activation="relu"))
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_classes)]
    return keras.Sequential(layers)


class Problem:
    """The network and its data: one for all optimizers.

    Attributes:
        variables: of the model.
    """

    def __init__(self, data_dir, relative="none"):
        dataset = datasets.load("patches", data_dir)
        self._task = _related(tasks.get("patches_convnet", dataset=dataset), relative)
        config = self._task.get_config()
        self._batch_size = config["batch_size"]
        self._model = build_model(config, dataset.train.images.shape[1:], dataset.num_classes)
        self.variables = self._model.trainable_variables
        self._splits = {name: _rows(dataset.split(name), relative) for name in datasets.SPLITS}
        self._whole = tf.function(self._loss, autograph=False)

    def begin(self, seed):
        """Gives the model the initial parameters of a seed."""
        setting = self._task.draw(random.seed(seed), 1)
        start = self._task.init(random.seed(seed), 1, setting)
        for variable, value in zip(self.variables, start, strict=True):
            variable.assign(value[0])

    def draw(self, split, seed, num):
        """The rows of `num` batches, `[num, batch_size]`; more of them begin with the same."""
        rng = np.random.default_rng((seed, datasets.SPLITS.index(split)))
        rows = len(self._splits[split][1])
        return rng.integers(rows, size=(num, self._batch_size), dtype=np.int32)

    def batch_loss(self, split, rows):
        """The loss of a batch, a tensor."""
        return self._loss(*[tf.gather(array, rows) for array in self._splits[split]])

    def evaluate(self, split):
        """The loss of a whole split, at most 10: a float."""
        clip = self._task.loss_clip
        return min(float(np.nan_to_num(self._whole(*self._splits[split]), nan=clip)), clip)

    def _loss(self, images, labels):
        return _LOSS(labels, self._model(images, training=True))


def _related(task, relative):
    """The task, twice as wide, or with one more layer before the last."""
    if relative == "wide":
        return dataclasses.replace(task, filters=tuple(2 * n for n in task.filters))
    if relative == "deep":
        changes = {"filters": (*task.filters, task.filters[-1]), "strides": (*task.strides, 1)}
        return dataclasses.replace(task, **changes)
    return task


def _rows(split, relative):
    """Images and labels of a split: of the second half of the photographs, if so related."""
    images, labels = split
    kept = labels >= (_PHOTOGRAPHS // 2 if relative == "photographs" else 0)
    return [tf.constant(images[kept]), tf.constant(labels[kept])]


class Training:
    """An optimizer and its compiled step on a problem, for any number of runs.

    Attributes:
        first_step_seconds: time of a first step, tracing and compilation included.
    """

    def __init__(self, problem, optimizer):
        self._problem, self._optimizer = problem, optimizer
        self._learned = isinstance(optimizer, LearnedOptimizer)
        makes_use = self._learned and "validation_loss" in optimizer.rule.signals
        self._hears = makes_use and _OBSERVE.value
        optimizer.build(problem.variables)
        self._initial = [variable.numpy() for variable in optimizer.variables]
        compiled = not self._learned or optimizer.jit_compile
        self._step = tf.function(self._take_step, jit_compile=compiled, autograph=False)
        self._held_out_loss = tf.function(
            functools.partial(problem.batch_loss, "validation"), jit_compile=True, autograph=False
        )
        self.first_step_seconds = self.run(0, 1)["seconds"][-1]

    def run(self, seed, steps, splits=("validation",)):
        """Trains the model from the beginning.

        Returns:
            Dict of lists with an entry for each evaluation: `steps`, `seconds`, and
            the loss of each of the splits.
        """
        self._problem.begin(seed)
        for variable, value in zip(self._optimizer.variables, self._initial, strict=True):
            variable.assign(value)
        if self._learned:
            self._optimizer.total_steps = steps if _KNOWN.value else None
        batches = self._problem.draw("train", seed, steps)
        held_out = self._problem.draw("validation", seed, -(-steps // _HEAR_EVERY))
        measured = {name: [] for name in ("steps", "seconds", *splits)}
        seconds = 0.0
        for first in range(0, steps, _EVALUATE_EVERY):
            last = min(first + _EVALUATE_EVERY, steps)
            seconds += self._timed(first, last, batches, held_out)
            with self.averaged():
                losses = [self._problem.evaluate(split) for split in splits]
            for name, value in zip(measured, (last, seconds, *losses), strict=True):
                measured[name].append(value)
        return measured

    @contextlib.contextmanager
    def averaged(self):
        """With the averages of the weights, if the optimizer keeps them."""
        last = [variable.numpy() for variable in self._problem.variables]
        self._optimizer.finalize_variable_values(self._problem.variables)
        yield
        for variable, value in zip(self._problem.variables, last, strict=True):
            variable.assign(value)

    def _timed(self, first, last, batches, held_out):
        start = time.perf_counter()
        for i in range(first, last):
            if self._hears and i % _HEAR_EVERY == 0:
                loss = self._held_out_loss(held_out[i // _HEAR_EVERY])
                self._optimizer.observe(validation_loss=loss)
            loss = self._step(batches[i])
        loss.numpy()
        return time.perf_counter() - start

    def _take_step(self, rows):
        """What Keras's `train_step` does, less its metrics."""
        with tf.GradientTape() as tape:
            loss = self._problem.batch_loss("train", rows)
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self._problem.variables)
        self._optimizer.apply(gradients, self._problem.variables)
        return loss


class Baseline:
    """A hand-designed optimizer, for one number of steps.

    Args:
        optimizer: key of `OPTIMIZERS`.
        steps: of its runs.
        decayed: whether its learning rate decays to zero over the steps.
    """

    def __init__(self, optimizer, steps, decayed=False):
        self.name = f"{optimizer}, cosine over {steps}" if decayed else optimizer
        self.steps = steps
        self._make, middle = OPTIMIZERS[optimizer]
        self._grid = [float(x) for x in middle * 10.0 ** (0.5 * _half_decades())]
        self._decayed = decayed
        # A variable, so that one program serves all learning rates.
        self._rate = keras.Variable(middle, trainable=False)

    def start(self, problem):
        """Its `Training`, at a learning rate that is yet to be set."""
        schedule = keras.optimizers.schedules.CosineDecay(self._rate, self.steps)
        rate = schedule if self._decayed else lambda: self._rate
        self.training = Training(problem, self._make(rate))

    def tune(self, file):
        """Sets the best learning rate, after trying all if the file lacks them."""
        tuned = {}
        if os.path.exists(file):
            with open(file, encoding="utf-8") as f:
                tuned = json.load(f)
        settings = {
            "keras": keras.__version__,
            "learning_rates": self._grid,
            "seeds": _TUNING_SEEDS.value,
            "steps": self.steps,
        }
        if tuned.get(self.name, {}).get("settings") != settings:
            losses = [self._try(rate) for rate in self._grid]
            tuned[self.name] = {"settings": settings, "best_validation_losses": losses}
            provenance.write_json(file, tuned)
        means = np.mean(tuned[self.name]["best_validation_losses"], axis=1)
        self.learning_rate = self._grid[np.argmin(means)]
        self._rate.assign(self.learning_rate)
        at_edge = self.learning_rate in (self._grid[0], self._grid[-1])
        print(
            f"{self.name}: learning rate {self.learning_rate:.2g}, validation loss "
            f"{means.min():.4f}{', at the edge of the grid' if at_edge else ''}",
            flush=True,
        )

    def _try(self, rate):
        """The best validation loss on each tuning seed."""
        self._rate.assign(rate)
        seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + _TUNING_SEEDS.value)
        return [smooth(self.training.run(seed, self.steps)["validation"]).min() for seed in seeds]


def _half_decades():
    return np.arange(_RATES.value) - _RATES.value // 2


def smooth(losses):
    """Mean over the last 5 evaluations up to each: `[evaluations]`."""
    return metrics.smooth(np.array(losses)[:, None], _SMOOTHED)[:, 0]


def steps_of(horizons):
    """The flag's horizons as integers."""
    if not all(horizon.isdecimal() and int(horizon) > 0 for horizon in horizons):
        raise app.UsageError(f"`--horizons` must be positive integers. Received: {horizons}")
    return [int(horizon) for horizon in horizons]


def labelled(weights):
    """The flag's weights: dict from label to the path of a SavedModel."""
    paths = {}
    for item in weights:
        label, _, path = item.rpartition("=")
        label = label or os.path.basename(os.path.normpath(path))
        if label in paths:
            raise app.UsageError(f"`--weights` has {label!r} twice. Received: {weights}")
        paths[label] = pretrained.find(path)
    return paths


def compete(problem, candidates):
    """Runs all on fresh seeds.

    Args:
        candidates: dict from name to `(Training, steps)`.

    Returns:
        Dict from name to the list of runs, each as from `Training.run`, with the loss
        of the whole training split at the end as `final_train`.
    """
    runs = {name: [] for name in candidates}
    for seed in range(_SEEDS.value):
        for name, (training, steps) in candidates.items():
            run = training.run(seed, steps, ("validation", "test"))
            run = {measure: np.round(values, 5).tolist() for measure, values in run.items()}
            with training.averaged():
                runs[name].append({**run, "final_train": problem.evaluate("train")})
        print(f"Seed {seed} is done.", flush=True)
    return runs


def summarise(runs, target_runs):
    """The figures of one optimizer: dict that JSON can hold."""
    results = [figures_of(*pair) for pair in zip(runs, target_runs, strict=True)]
    columns = {name: np.array([each[name] for each in results]) for name in results[0]}
    summary = {"seeds_to_target": int(np.isfinite(columns["steps_to_target"]).sum())}
    for name, values in columns.items():
        if name.endswith("_loss"):
            summary[name] = {"mean": values.mean(), "std": values.std(ddof=min(1, len(values) - 1))}
        else:
            summary[name] = {"median": np.median(values), "min": min(values), "max": max(values)}
            # Where a seed did not get there, for want of an infinity in JSON.
            summary[name] = {k: v if np.isfinite(v) else None for k, v in summary[name].items()}
    return summary


def figures_of(run, target_run):
    """The figures of one run, from it and that of Adam: infinite where it missed the target."""
    validation = smooth(run["validation"])
    best = int(np.argmin(validation))
    target = smooth(target_run["validation"]).min()
    adam_seconds = time_to(target_run, target)[1]
    steps, seconds = time_to(run, target)
    return {
        "steps_to_target": steps,
        "seconds_to_target": seconds,
        "fraction_of_adams_seconds": seconds / adam_seconds,
        "milliseconds_per_step": 1e3 * run["seconds"][-1] / run["steps"][-1],
        "best_validation_loss": validation[best],
        "test_at_best_validation_loss": smooth(run["test"])[best],
        "final_train_loss": run["final_train"],
        "final_validation_loss": run["validation"][-1],
        "final_test_loss": run["test"][-1],
    }


def time_to(run, target):
    """Steps and seconds until the smoothed validation loss is at most that; infinite if never."""
    reached = np.flatnonzero(smooth(run["validation"]) <= target)
    if not len(reached):
        return np.inf, np.inf
    return float(run["steps"][reached[0]]), run["seconds"][reached[0]]


def plot(runs, num_learned, file):
    """Draws validation losses against seconds and steps: median and range over seeds.

    Args:
        runs: from `compete`, the learned optimizers first.
        num_learned: how many these are.
        file: PNG to write.
    """
    figure, axes = plt.subplots(1, 2, figsize=(14, 5.5), sharey=True, layout="constrained")
    for i, (name, trainings) in enumerate(runs.items()):
        if i < num_learned:
            style = {"lw": 2.4, "color": plt.cm.magma(0.75 * i / num_learned)}
        else:
            color = f"C{list(OPTIMIZERS).index(name.split(', cosine')[0])}"
            style = {"lw": 1.0, "color": color, "ls": "--" if "cosine" in name else "-"}
        losses = np.array([smooth(training["validation"]) for training in trainings])
        for axis, unit in zip(axes, ("seconds", "steps"), strict=True):
            x = np.median([training[unit] for training in trainings], axis=0)
            axis.plot(x, np.median(losses, axis=0), label=name, **style)
            axis.fill_between(x, losses.min(0), losses.max(0), color=style["color"], alpha=0.1)
    target = np.median([smooth(training["validation"]).min() for training in runs[_TARGET]])
    for axis, unit in zip(axes, ("seconds", "steps"), strict=True):
        axis.axhline(target, color="black", ls=":", label=f"best of {_TARGET}")
        axis.set(xlabel=unit, xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("smoothed validation loss (median and range over seeds)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.suptitle("The convnet of patches_convnet in Keras, without compilation and evaluation")
    temporary = f"{file}.tmp"
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, file)
    plt.close(figure)


def show(summary):
    for name, own in summary.items():
        steps, seconds, fraction = (
            "{median} ({min} to {max})".format(
                **{k: "never" if v is None else f"{v:.3g}" for k, v in own[key].items()}
            )
            for key in ("steps_to_target", "seconds_to_target", "fraction_of_adams_seconds")
        )
        print(
            f"{name}, {own['milliseconds_per_step']['median']:.1f} ms a step, "
            f"first {own['first_step_seconds']:.1f} s\n"
            f"  target on {own['seeds_to_target']} of {_SEEDS.value} seeds: "
            f"steps {steps}, seconds {seconds}, fraction of Adam's {fraction}\n  "
            + ", ".join(
                f"{key} {value['mean']:.4f} ± {value['std']:.4f}"
                for key, value in own.items()
                if key.endswith("_loss")
            )
        )


def start_baselines(problem, horizons):
    """The tuned `Baseline`s."""
    chosen = _BASELINES.value or list(OPTIMIZERS)
    unknown = set(chosen) - set(OPTIMIZERS)
    if unknown or _TARGET not in chosen:
        raise app.UsageError(
            f"`--baselines` must be some of {list(OPTIMIZERS)}, {_TARGET} among them. "
            f"Received: {_BASELINES.value}"
        )
    baselines = [Baseline(name, _STEPS.value) for name in chosen]
    for name in filter(chosen.__contains__, _DECAYED):
        for steps in sorted({*horizons, _STEPS.value}):
            baselines.append(Baseline(name, steps, decayed=True))
    for baseline in baselines:
        baseline.start(problem)
        baseline.tune(os.path.join(_OUT_DIR.value, "tuning.json"))
    return baselines


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    paths, horizons = labelled(_WEIGHTS.value), steps_of(_HORIZONS.value)
    learned = {label: LearnedOptimizer(weights=path) for label, path in paths.items()}
    if _UNTRAINED.value:
        rule = next(iter(learned.values())).rule
        learned["untrained"] = LearnedOptimizer(weights=rule.init_theta(0), rule=rule)
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    problem = Problem(_DATA_DIR.value, _RELATIVE.value)
    baselines = start_baselines(problem, horizons)
    if not _SEEDS.value:
        return
    candidates = {}
    for label, optimizer in learned.items():
        training = Training(problem, optimizer)
        candidates |= {f"{label}, {steps} steps": (training, steps) for steps in horizons}
    num_learned = len(candidates)
    candidates |= {baseline.name: (baseline.training, baseline.steps) for baseline in baselines}
    runs = compete(problem, candidates)
    summary = {
        name: {
            **summarise(runs[name], runs[_TARGET]),
            "first_step_seconds": training.first_step_seconds,
        }
        for name, (training, _) in candidates.items()
    }
    show(summary)
    content = {
        "weights": {
            label: saved_model.read_metadata(path)["sha256"] for label, path in paths.items()
        },
        "learning_rates": {baseline.name: baseline.learning_rate for baseline in baselines},
        "summary": summary,
        "runs": runs,
    }
    provenance.write_results(os.path.join(_OUT_DIR.value, "headline.json"), content)
    plot(runs, num_learned, os.path.join(_OUT_DIR.value, "headline.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
