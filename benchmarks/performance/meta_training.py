"""Time of an inner step of meta-training for each particle, and of its compilation.

python benchmarks/performance/meta_training.py --out_dir=benchmarks/results/performance

On the digits with an MLP 64-hidden-10. The reference setting has 64 particles, 32 hidden
units and 20 inner steps; around it, one of them is varied at a time for ES and pathwise, of
which the other two are made. A second run, with --one_core, shows what the other cores are
worth.
"""

import os

import stopwatch
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import rules
from meta import estimators, random, smoke, tasks

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_ESTIMATORS = flags.DEFINE_list("estimators", ["es", "pes", "pathwise", "merged"], "Which.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 10, "Estimates of each.", lower_bound=1)
_VARIED = flags.DEFINE_bool("varied", True, "Whether to go beyond the reference setting.")

_VARIED_FOR = ("es", "pathwise")
_ONE_CORE = flags.DEFINE_bool("one_core", False, "Whether to use a single core.")
smoke.define(estimators=["es"], repetitions=1, varied=False)

_REFERENCE = {"num_particles": 64, "unroll_length": 20, "hidden": 32}
_VARIATIONS = [
    {},
    {"num_particles": 16},
    {"num_particles": 256},
    {"unroll_length": 80},
    {"hidden": 256},
]


def program(name, num_particles, unroll_length, hidden):
    """A function that makes one estimate, and the compilation's `stopwatch.once`."""
    rule = rules.FactoredMLP(step_mult=0.01, exp_mult=0.1)
    task = tasks.get("digits_mlp", hidden_units=(hidden,))
    horizon = 20 * unroll_length if name == "pes" else unroll_length
    estimator = estimators.get(
        name, rule, task, num_particles=num_particles, unroll_length=unroll_length, horizon=horizon
    )
    theta = {key: tf.constant(value) for key, value in rule.init_theta().items()}
    state = estimator.init_state(theta, random.seed(0))
    step = tf.function(estimator.estimate, jit_compile=True, autograph=False)

    def estimate():
        estimate = step(theta, state, random.seed(1))
        # On an accelerator, the call above returns before the work is done.
        estimate.metrics["meta_loss"].numpy()

    return estimate, stopwatch.once(estimate)


def measure(variation):
    """Microseconds of an inner step of a particle, and seconds of compilation."""
    setting = {**_REFERENCE, **variation}
    names = [n for n in _ESTIMATORS.value if not variation or n in _VARIED_FOR]
    made = {name: program(name, **setting) for name in names}
    steps = 1000 * setting["num_particles"] * setting["unroll_length"]
    functions = {name: function for name, (function, _) in made.items()}
    found = stopwatch.interleaved(functions, _REPETITIONS.value, unit=steps)
    for name, figures in found.items():
        print(f"{setting} {name:>8}: {figures} us, compiled in {made[name][1]} s", flush=True)
    compilation = {name: seconds for name, (_, seconds) in made.items()}
    return {**setting, "microseconds": found, "compilation_seconds": compilation}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    name = "meta_training.json"
    if _ONE_CORE.value:
        # Before TensorFlow makes its threads.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        name = "meta_training_one_core.json"
    variations = _VARIATIONS if _VARIED.value else [{}]
    results = []
    for variation in variations:
        results.append(measure(variation))
        stopwatch.write(os.path.join(_OUT_DIR.value, name), {"settings": results})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
