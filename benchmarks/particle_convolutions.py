"""Ways to convolve with filters of their own for every particle, compared in time.

python benchmarks/particle_convolutions.py --out_dir=benchmarks/results/particle_convolutions

Each trains the network of the task `patches_convnet` by gradient descent, forward
and backward, as one XLA program. Their steps are measured in turns, so that another
load on the machine meets all of them; the ratios of the medians are what counts.
"""

import os
import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from meta import datasets, provenance, random, smoke, tasks
from meta.tasks.networks.convolution import Windows, convolve

_PARTICLES = flags.DEFINE_multi_integer("particles", [1, 8, 32], "Particle counts.", lower_bound=1)
_BATCH_SIZES = flags.DEFINE_multi_integer("batch_sizes", [8, 32], "Batch sizes.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 4, "Steps of gradient descent a call.", lower_bound=1)
_REPETITIONS = flags.DEFINE_integer("repetitions", 15, "Calls that are timed.", lower_bound=1)
_OUT_DIR = flags.DEFINE_string("out_dir", "out/particle_convolutions", "For the figures.")
smoke.define(particles=[2], batch_sizes=[2], steps=1, repetitions=1)

_LEARNING_RATE = 0.1
_NUM_CLASSES = 12


class Implementation(NamedTuple):
    """A way to convolve, and the layout of the images that it asks for.

    Attributes:
        enter: from images `[P, B, height, width, channels]` to its own layout.
        convolve: `(x, filters, bias, stride)` to the next x, in that layout.
        mean: `(x, P)` to the means over height and width, `[P, B, channels]`.
    """

    enter: Any
    convolve: Any
    mean: Any


def _batch_innermost():
    def apply(x, filters, bias, stride):
        return convolve(x, filters, stride) + bias[:, :, None, None, None]

    return Implementation(
        enter=lambda images: tf.transpose(images, (0, 4, 2, 3, 1)),
        convolve=apply,
        mean=lambda x, _: tf.transpose(tf.reduce_mean(x, axis=(2, 3)), (0, 2, 1)),
    )


def _channels_innermost(convolve):
    return Implementation(
        enter=lambda images: images,
        convolve=convolve,
        mean=lambda x, _: tf.reduce_mean(x, axis=(2, 3)),
    )


def _sliced_patches(x, filters, bias, stride):
    """All shifted copies side by side, and one product."""
    patches = tf.concat(_shifted(x, filters.shape[1], stride), axis=-1)
    return _product(patches, filters) + bias[:, None, None, None]


def _accumulated_shifts(x, filters, bias, stride):
    """A product for each entry of the window, and their sum."""
    size = filters.shape[1]
    entries = [filters[:, i, j] for i in range(size) for j in range(size)]
    shifted = _shifted(x, size, stride)
    products = [_product(a, b) for a, b in zip(shifted, entries, strict=True)]
    return tf.add_n(products) + bias[:, None, None, None]


def _extracted_patches(x, filters, bias, stride):
    """TensorFlow's own patches, and one product."""
    particles, batch, *image = x.shape
    patches = tf.image.extract_patches(
        tf.reshape(x, (particles * batch, *image)),
        sizes=(1, *filters.shape[1:3], 1),
        strides=(1, stride, stride, 1),
        rates=(1, 1, 1, 1),
        padding="SAME",
    )
    patches = tf.reshape(patches, (particles, batch, *patches.shape[1:]))
    return _product(patches, filters) + bias[:, None, None, None]


def _shifted(x, size, stride):
    rows, columns = (Windows(length, size, stride) for length in x.shape[2:4])
    x = tf.pad(x, ((0, 0), (0, 0), rows.padding, columns.padding, (0, 0)))
    return [
        x[:, :, rows.taken_by(i), columns.taken_by(j)] for i in range(size) for j in range(size)
    ]


def _product(patches, filters):
    """`[P, B, height, width, K]` by filters of K entries for each output."""
    particles, entries, outputs = filters.shape[0], patches.shape[-1], filters.shape[-1]
    x = tf.reshape(patches, (particles, -1, entries))
    x = tf.matmul(x, tf.reshape(filters, (particles, entries, outputs)))
    return tf.reshape(x, (*patches.shape[:-1], outputs))


def _loop():
    """A plain convolution for each particle."""

    def apply(x, filters, bias, stride):
        return [
            tf.nn.conv2d(a, f, stride, "SAME") + b
            for a, f, b in zip(x, tf.unstack(filters), tf.unstack(bias), strict=True)
        ]

    return Implementation(
        enter=tf.unstack,
        convolve=apply,
        mean=lambda x, _: tf.stack([tf.reduce_mean(a, axis=(1, 2)) for a in x]),
    )


def _grouped():
    """One convolution, a group for each particle: `[B, height, width, P * channels]`."""

    def enter(images):
        x = tf.transpose(images, (1, 2, 3, 0, 4))
        return tf.reshape(x, (*x.shape[:3], -1))

    def apply(x, filters, bias, stride):
        grouped = tf.transpose(filters, (1, 2, 3, 0, 4))
        grouped = tf.reshape(grouped, (*grouped.shape[:3], -1))
        return tf.nn.conv2d(x, grouped, stride, "SAME") + tf.reshape(bias, (-1,))

    def mean(x, particles):
        means = tf.reduce_mean(x, axis=(1, 2))
        return tf.transpose(tf.reshape(means, (means.shape[0], particles, -1)), (1, 0, 2))

    return Implementation(enter, apply, mean)


IMPLEMENTATIONS = {
    "sliced patches, batch innermost (the task's)": _batch_innermost(),
    "sliced patches, channels innermost": _channels_innermost(_sliced_patches),
    "extracted patches, channels innermost": _channels_innermost(_extracted_patches),
    "accumulated shifts, channels innermost": _channels_innermost(_accumulated_shifts),
    "loop of plain convolutions": _loop(),
    "grouped convolution": _grouped(),
}


def make_program(implementation, task, particles, num_steps):
    """A function that trains the network and returns the losses of the last step, `[P]`."""
    setting = task.draw(random.seed(2), particles)
    params = task.init(random.seed(0), particles, setting)
    images, labels = task.batch("train", random.seed(1), particles, setting)

    def step(params):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            x = implementation.enter(images)
            for filters, bias, stride in zip(
                params[:-2:2], params[1:-2:2], task.get_config()["strides"], strict=True
            ):
                x = implementation.convolve(x, filters, bias, stride)
                x = tf.nest.map_structure(tf.nn.relu, x)
            logits = tf.matmul(implementation.mean(x, particles), params[-2]) + params[-1][:, None]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses, axis=1)
        grads = tape.gradient(loss, params)
        return [p - _LEARNING_RATE * g for p, g in zip(params, grads, strict=True)], loss

    @tf.function(jit_compile=True, autograph=False)
    def program(params):
        _, _, loss = tf.while_loop(
            lambda i, *_: i < num_steps,
            lambda i, params, _: (i + 1, *step(params)),
            (tf.constant(0), params, tf.zeros(particles)),
            maximum_iterations=num_steps,
        )
        return loss

    concrete = program.get_concrete_function(params)
    return lambda: concrete(params).numpy()


def measure(particles, batch_size):
    """The figures of each implementation: list of dicts that JSON can hold."""
    task = tasks.get("patches_convnet", dataset=_random_images(), batch_size=batch_size)
    first, losses, seconds, programs = {}, {}, {}, {}
    for name, implementation in IMPLEMENTATIONS.items():
        start = time.perf_counter()
        programs[name] = make_program(implementation, task, particles, _STEPS.value)
        losses[name] = programs[name]()
        first[name] = time.perf_counter() - start
        seconds[name] = []
    for _ in range(_REPETITIONS.value):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - start)
    expected = next(iter(losses.values()))
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, expected, rtol=1e-3, err_msg=name)
    return [
        {
            "implementation": name,
            "particles": particles,
            "batch_size": batch_size,
            "trace_and_compile_seconds": first[name] - np.median(seconds[name]),
            "microseconds_per_particle_step": [
                1e6 * float(np.quantile(seconds[name], q)) / (particles * _STEPS.value)
                for q in (0.5, 0.25, 0.75)
            ],
        }
        for name in IMPLEMENTATIONS
    ]


def _random_images():
    """As many classes, and images of the same shape, as the patches: time does not see more."""
    rng = np.random.RandomState(0)
    images = rng.standard_normal((500, 32, 32, 1)).astype("float32")
    split = datasets.ImageSplit(images, rng.randint(0, _NUM_CLASSES, 500).astype("int32"))
    return datasets.ImageDataset("random", _NUM_CLASSES, split, split, split)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    rows = []
    for particles in _PARTICLES.value:
        for batch_size in _BATCH_SIZES.value:
            rows += measure(particles, batch_size)
            print(f"{particles} particles, batches of {batch_size}: median (quartiles)")
            for row in rows[-len(IMPLEMENTATIONS) :]:
                median, low, high = row["microseconds_per_particle_step"]
                print(
                    f"{row['implementation']:>46}: {median:7.0f} ({low:.0f} to {high:.0f}) "
                    "microseconds a particle and step, "
                    f"{row['trace_and_compile_seconds']:.1f} s to trace and compile",
                    flush=True,
                )
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    file = os.path.join(_OUT_DIR.value, "particle_convolutions.json")
    provenance.write_results(file, {"rows": rows})


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
