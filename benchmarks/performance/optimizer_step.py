"""Time of an optimizer's step for each parameter, against Keras's Adam and AdamW.

python benchmarks/performance/optimizer_step.py --out_dir=benchmarks/results/performance

All steps are taken in turn on variables of their own, with random gradients. That takes up to
3 GiB an optimizer on the largest model: `--at_once` says how many rules take turns together,
each time with the baselines, in a process of their own, whose memory ends with it. Where a
process is ended for want of memory, its figures are null.
"""

import concurrent.futures
import math
import multiprocessing
import os
import warnings

import contenders
import models
import stopwatch
from absl import app, flags, logging

from meta import smoke

_OUT_DIR = flags.DEFINE_string("out_dir", "out/performance", "For the figures.")
_MODELS = flags.DEFINE_list("models", list(models.SHAPES), f"Some of {list(models.SHAPES)}.")
_RULES = flags.DEFINE_list("rules", None, "Only these, of contenders.py.")
_SECONDS = flags.DEFINE_float("seconds", 20.0, "About how long to measure each turn.")
_AT_ONCE = flags.DEFINE_integer("at_once", len(contenders.RULES), "How many rules.", lower_bound=1)
smoke.define(models=["mlp"], rules=["learned_hyperparameters"], seconds=0.1)
_MOST_REPETITIONS = 50


def turns(model):
    """Nanoseconds for each parameter, of each optimizer: a dict for each turn, one by one."""
    names = list(contenders.RULES) if _RULES.value is None else _RULES.value
    for first in range(0, len(names), _AT_ONCE.value):
        turn = names[first : first + _AT_ONCE.value]
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            try:
                yield pool.submit(_measure, turn, model, _SECONDS.value).result()
            except concurrent.futures.process.BrokenProcessPool:
                yield {"repetitions": 0, "nanoseconds": dict.fromkeys(turn)}


def _measure(names, model, seconds):
    warnings.filterwarnings("ignore", message=".*makes use of.*")
    shapes = models.SHAPES[model]()
    count = _count(shapes)
    steps = {}
    for name in (*contenders.BASELINES, *names):
        steps[name] = contenders.step(name, *models.variables(shapes))
        print(f"{name:>28}, first step: {stopwatch.once(steps[name])} s", flush=True)
    one_round = sum(stopwatch.once(step)["wall"] for step in steps.values())
    repetitions = max(5, min(_MOST_REPETITIONS, int(seconds / max(one_round, 0.01))))
    figures = stopwatch.interleaved(steps, repetitions, unit=count)
    return {"repetitions": repetitions, "nanoseconds": figures}


def _count(shapes):
    return sum(math.prod(shape) for shape in shapes)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    for model in _MODELS.value:
        found = {"parameters": _count(models.SHAPES[model]()), "turns": []}
        for turn in turns(model):
            found["turns"].append(turn)
            for name, figures in turn["nanoseconds"].items():
                print(f"{model:>12} {name:>28}: {figures} ns per parameter", flush=True)
            # After each turn, so that none is lost.
            stopwatch.write(os.path.join(_OUT_DIR.value, f"optimizer_step_{model}.json"), found)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
