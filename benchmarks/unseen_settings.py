"""Shipped weights on digits tasks that differ from the one they were trained for.

python benchmarks/unseen_settings.py --out_dir=benchmarks/results/digits

Against SGD, Adam and AdamW, each tuned for every setting over 9 learning rates (by
validation loss over the last 5 % of the steps), on 8 fresh seeds.
"""

import os

from absl import app, flags, logging

from lopt_keras import pretrained, saved_model
from meta import provenance, smoke, tasks
from meta.evaluation import comparison

_WEIGHTS = flags.DEFINE_string("weights", "digits", "Name of shipped weights.")
_SETTINGS = flags.DEFINE_list("settings", [], "Names of settings. Default: all.")
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Of each training. Default: as the setting says.", lower_bound=1
)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/unseen_settings", "For the pictures and figures.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets are prepared.")
smoke.define(settings=["wide"], num_steps=20)

SETTINGS = {
    "as_trained": ({}, 1000),
    "wide": ({"hidden_units": [256]}, 1000),
    "deep": ({"hidden_units": [64, 64, 64]}, 1000),
    "tanh": ({"activation": "tanh"}, 1000),
    "batch_8": ({"batch_size": 8}, 1000),
    "long": ({}, 4000),
}
"""What differs from the task of meta-training, and the number of steps."""


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if unknown := set(_SETTINGS.value) - set(SETTINGS):
        raise app.UsageError(f"`--settings` must be some of {list(SETTINGS)}. Received: {unknown}")
    rule, theta, _ = saved_model.read(pretrained.find(_WEIGHTS.value))
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    summaries = {}
    for name in _SETTINGS.value or SETTINGS:
        config, steps = SETTINGS[name]
        steps = _NUM_STEPS.value or steps
        task = tasks.get("digits_mlp", data_dir=_DATA_DIR.value, **config)
        curves = comparison.compare(task, rule, theta, steps, seed=100)
        summaries[name] = comparison.summarise(curves)
        title = f"{_WEIGHTS.value} on digits_mlp: {name}, {config or 'no difference'}"
        comparison.plot(curves, title, os.path.join(_OUT_DIR.value, f"unseen_{name}.png"))
        print(f"{name}: {config}, {steps} steps")
        for optimizer, figures in summaries[name].items():
            values = (f"{k} {v['mean']:.4f} ± {v['std']:.4f}" for k, v in figures.items())
            print(f"{optimizer:>30}: " + ", ".join(values), flush=True)
    provenance.write_results(os.path.join(_OUT_DIR.value, "unseen.json"), summaries)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
