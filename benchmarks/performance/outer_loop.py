"""What summaries, checkpoints and the progress bar add to a meta-step, in percent.

python benchmarks/performance/outer_loop.py --out_dir=benchmarks/results/performance

The loop of `meta.train` as it is, in the reference setting of `meta_training.py` with ES: its
wall time against that of the compiled steps alone, which the loop measures itself. Batches
are gathered inside of the compiled step; `benchmarks/tasks/input_share.py` has their share.
"""

import os
import tempfile

import stopwatch
from absl import app, flags, logging

from lopt_keras import rules
from meta import smoke
from meta.training.config import MetaTrainingConfig
from meta.training.run import started

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 500, "Outer steps.", lower_bound=1)
smoke.define(num_steps=10)
_FIRST = 10


def measure(num_steps):
    """Seconds in all and in compiled steps, and the difference in percent: dict."""
    with tempfile.TemporaryDirectory() as directory:
        config = MetaTrainingConfig(
            directory,
            task_config={"hidden_units": (32,)},
            rule=rules.FactoredMLP(step_mult=0.01, exp_mult=0.1),
            estimator="es",
            num_particles=64,
            unroll_length=20,
            outer_objective="train",
        )
        with started(config) as training:
            loop = training.loop
            loop.run(_FIRST)
            before = loop.seconds
            wall = stopwatch.once(lambda: loop.run(_FIRST + num_steps))["wall"]
            compiled = loop.seconds - before
    return {
        "outer_steps": num_steps,
        "seconds": wall,
        "seconds_in_compiled_steps": round(compiled, 2),
        "overhead_percent": round(100 * (wall / compiled - 1), 2),
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    figures = measure(_NUM_STEPS.value)
    print(figures)
    stopwatch.write(os.path.join(_OUT_DIR.value, "outer_loop.json"), figures)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
