"""Trainings of Keras models, and their figures."""

import time

import keras
import numpy as np
import tqdm

NUM_RATES = 9
"""Of the learning rates that Adam is tuned over."""

TUNING_SEED = 1000
"""Of the trainings that Adam is tuned on; fresh seeds count from 0."""


class _Clock(keras.callbacks.Callback):
    """The seconds from the begin of a fit to the end of each epoch, validation left out."""

    def on_train_begin(self, logs=None):
        self.seconds, self._validating = [], 0.0
        self._start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._test_start = time.perf_counter()

    def on_test_end(self, logs=None):
        self._validating += time.perf_counter() - self._test_start

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._start - self._validating)


def num_examples(workload):
    """Of its training data, arrays or nests of arrays."""
    return len(keras.tree.flatten(workload.train[0])[0])


def train(optimizer, workload, epochs, seed, callbacks=()):
    """One fit: dict.

    `train` and `validation` are the losses of each epoch, `test` the loss at the end,
    `epoch_seconds` the seconds at the end of each epoch, with compilation but without
    validation, and `seconds` those of the whole fit. An optimizer that averages is validated and
    tested with the average; its train losses are those of the variables before averaging.
    """
    keras.utils.set_random_seed(seed)
    model = workload.make()
    model.compile(optimizer=optimizer, loss=workload.loss)
    clock = _Clock()
    averaging = [keras.callbacks.SwapEMAWeights()] if optimizer.use_ema else []
    start = time.perf_counter()
    history = model.fit(
        *workload.train,
        validation_data=workload.validation,
        batch_size=workload.batch_size,
        epochs=epochs,
        callbacks=[clock, *averaging, *callbacks],
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    test_loss = model.evaluate(*workload.test, batch_size=500, verbose=0)
    return {
        "train": history["loss"],
        "validation": history["val_loss"],
        "test": test_loss,
        "epoch_seconds": clock.seconds,
        "seconds": seconds,
    }


def adam_grid(num_rates=NUM_RATES):
    """The learning rates that Adam is tuned over: half-decades, 0.00316 in the middle."""
    exponents = -2.5 + 0.5 * (np.arange(num_rates) - num_rates // 2)
    return [float(f"{rate:.3g}") for rate in 10.0**exponents]


def best_rate(train_at, num_rates=NUM_RATES):
    """That of `adam_grid` with the lowest validation loss at the end.

    Args:
        train_at: function from a learning rate to a training, as `train` returns it.
        num_rates: how many are tried.
    """
    grid = adam_grid(num_rates)
    losses = [train_at(rate)["validation"][-1] for rate in grid]
    return grid[int(np.nanargmin(losses))]


def adams(workload, epochs, num_rates=NUM_RATES):
    """Adam as it comes and tuned: dict from name to a function that makes the optimizer."""
    print(f"Adam is tuned over {num_rates} learning rates...", flush=True)
    with tqdm.tqdm(total=num_rates, desc="tuning Adam", leave=False) as bar:

        def train_at(rate):
            training = train(keras.optimizers.Adam(rate), workload, epochs, TUNING_SEED)
            bar.update()
            return training

        best = best_rate(train_at, num_rates)
    return {
        "Adam, default 0.001": keras.optimizers.Adam,
        f"Adam, tuned {best:g}": lambda: keras.optimizers.Adam(best),
    }


def compare(optimizers, workload, epochs, num_seeds):
    """Trains with each optimizer on the same fresh seeds, and prints what comes of it.

    Args:
        optimizers: dict from name to a function that makes the optimizer.

    Returns:
        Dict from name to a list of trainings.
    """
    runs = {}
    for name, make in optimizers.items():
        seeds = tqdm.trange(num_seeds, desc=name, leave=False)
        runs[name] = [train(make(), workload, epochs, seed) for seed in seeds]
        show({name: runs[name]})
    return runs


def show(runs):
    """Prints losses at the end and seconds of each optimizer."""
    for name, own in summarise(runs).items():
        cells = [f"{k} {v['mean']:.4f} ± {v['std']:.4f}" for k, v in own.items()]
        print(f"{name:>22}: {', '.join(cells)}", flush=True)


def summarise(runs):
    """Of each optimizer, mean and standard deviation over seeds at the end: dict."""
    summary = {}
    for name, trainings in runs.items():
        final = {
            split: np.array([np.ravel(training[split])[-1] for training in trainings])
            for split in ("train", "validation", "test", "seconds")
        }
        summary[name] = {
            split: {"mean": float(values.mean()), "std": float(values.std(ddof=1))}
            for split, values in final.items()
        }
    return summary
