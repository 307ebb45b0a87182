"""What a state in bfloat16 does to the losses, and to the memory.

python benchmarks/state_dtype.py --out_dir=benchmarks/results/state_dtype

Trains a Keras MLP on the digits with the shipped weights `digits`: state in float32, in
bfloat16 with stochastic rounding (what `state_dtype="bfloat16"` does), and in bfloat16
rounded to nearest (which it does not do, and why).
"""

import os
from unittest import mock

import epoch_curves
import fitting
import model_zoo
import numpy as np
from absl import app, flags, logging
from keras import ops

from lopt_keras import LearnedOptimizer, rounding
from meta import provenance, smoke

_EPOCHS = flags.DEFINE_integer("epochs", 80, "Epochs (of 19 steps) of each training.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Trainings of each kind.", lower_bound=2)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/state_dtype", "For the picture and the figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(epochs=1, seeds=2)

KINDS = {
    "float32": ("float32", rounding.to_bfloat16),
    "bfloat16, stochastic rounding": ("bfloat16", rounding.to_bfloat16),
    "bfloat16, rounded to nearest": ("bfloat16", lambda x, seed: ops.cast(x, "bfloat16")),
}
"""`state_dtype`, and how values are rounded to it."""


def train(state_dtype, round_, workload, seed):
    """A training, as from `fitting.train`, with the bytes of state per parameter."""
    # Not compiled by itself: a compiled step is shared, with the rounding of whoever came first.
    optimizer = LearnedOptimizer("digits", state_dtype=state_dtype, jit_compile=False)
    with mock.patch.object(rounding, "to_bfloat16", round_):
        training = fitting.train(optimizer, workload, _EPOCHS.value, seed)
    size = state_bytes(optimizer) / workload.make().count_params()
    return {**training, "state_bytes_per_parameter": size}


def state_bytes(optimizer):
    sizes = {"float32": 4, "bfloat16": 2, "int32": 4, "int64": 8}
    return sum(int(ops.size(v)) * sizes[v.dtype] for v in optimizer.variables)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    workload = model_zoo.SMALLER["mlp"](_DATA_DIR.value)
    runs = {}
    for name, (state_dtype, round_) in KINDS.items():
        runs[name] = [train(state_dtype, round_, workload, seed) for seed in range(_SEEDS.value)]
        print(f"{name:>30}, mean ± standard deviation over seeds:", end="")
        for split in ("train", "validation", "test"):
            final = [np.ravel(run[split])[-1] for run in runs[name]]
            print(f"  {split} {np.mean(final):.4f} ± {np.std(final, ddof=1):.4f}", end="")
        size = runs[name][0]["state_bytes_per_parameter"]
        print(f"  {size:.2f} bytes of state per parameter", flush=True)
    provenance.write_results(os.path.join(_OUT_DIR.value, "state_dtype.json"), runs)
    title = "State of the optimizer in float32 and bfloat16, a Keras MLP on 8x8 digits"
    epoch_curves.plot(runs, title, os.path.join(_OUT_DIR.value, "state_dtype.png"))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
