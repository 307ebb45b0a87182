"""Trainings of Keras models, and their figures."""

import time

import keras
import numpy as np

ADAM_GRID = [float(f"{rate:.3g}") for rate in 10.0 ** np.arange(-4.5, 0.0, 0.5)]
"""The learning rates that Adam is tuned over."""


def train(optimizer, workload, epochs, seed):
    """Losses of each epoch of a fit, the test loss at its end, and the fit's seconds."""
    keras.utils.set_random_seed(seed)
    model = workload.make()
    model.compile(optimizer=optimizer, loss=workload.loss)
    start = time.perf_counter()
    history = model.fit(
        *workload.train,
        validation_data=workload.validation,
        batch_size=workload.batch_size,
        epochs=epochs,
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    test_loss = model.evaluate(*workload.test, batch_size=500, verbose=0)
    return {
        "train": history["loss"],
        "validation": history["val_loss"],
        "test": test_loss,
        "seconds": seconds,
    }


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
