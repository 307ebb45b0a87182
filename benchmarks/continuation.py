"""Analytic continuation: the learned solver against maximum entropy and other methods.

python benchmarks/continuation.py --out_dir=benchmarks/results/continuation

Noise 1e-2 to 1e-5 of the kernel's largest entry, 64 times, beta times the largest frequency 80,
128 frequencies; data are made on a grid four times as fine. Spectra are of the families of
training, and of families that no training saw. What a method has to choose is chosen on tuning
spectra of the families of training, at each noise level. Times are processor time of this
process for one spectrum alone, without compilation. A batch has its elapsed time too, on all
cores.

`continuation_networks.py` compares networks. An independent maximum entropy takes part if the
package ana_cont is installed.
"""

import functools
import json
import os
import time

import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from lopt_keras import LearnedOptimizer
from meta import provenance, random, smoke
from meta.continuation import classical, evaluation, kernels, saving, solving, spectra, training
from meta.continuation.problem import Problem

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/continuation", "For the results.")
_WEIGHTS = flags.DEFINE_string("weights", saving.PRETRAINED, "What `train` wrote.")
_SPECTRA = flags.DEFINE_integer("spectra", 128, "To compare on, of either kind.", 8)
_PARTS = flags.DEFINE_list(
    "parts", ["comparison", "mixtures", "times"], "The others read the first."
)
_TUNING = flags.DEFINE_integer("tuning", 32, "To tune on.", 1)
_SLOW = flags.DEFINE_integer("slow", 12, "To compare slow methods on.", 6)
smoke.define(spectra=8, tuning=2, slow=6)

TUNING_SEED, FRESH_SEED, UNSEEN_SEED = 1001, 1002, 1003
BLURS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Standard deviations in cells, by which the learned answer may be blurred as a default model."""

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Of the learned answer in a default model, the rest being maximum entropy's answer itself."""

_FREQUENCIES = 128
_AIMS = [
    {"choice": "evidence"},
    *({"choice": "discrepancy", "target": target} for target in (0.5, 0.7, 1.0, 1.4)),
]
_PLAIN = [{**aim, "model": model} for model in ("flat", "mean") for aim in _AIMS]
_OTHERS = [("fermionic", 20.0), ("fermionic", 320.0), ("bosonic", 80.0), ("laplace", 80.0)]
_ELSEWHERE = ((16, TUNING_SEED), (64, FRESH_SEED))
_GENERAL_STEPS = 500
_LITTLE = 0.5


@functools.cache
def mean_spectrum():
    """The mean of the spectra of the families of training, as a default model."""
    drawn = spectra.draw(random.seed(0), 4096, _FREQUENCIES).numpy()
    return drawn.mean(axis=0).astype(float)


def entropy(test, indices, defaults=None, model="flat", **options):
    """Maximum entropy's answers to some measurements.

    Args:
        test: `TestSet`.
        indices: which of its measurements.
        defaults: default models, one for each measurement of the test.
        model: the one default model otherwise, "flat" or "mean".
        **options: of `maximum_entropy`.
    """
    if defaults is None:
        default = None if model == "flat" else mean_spectrum()
        defaults = [default] * len(test.truth)
    return np.array(
        [
            classical.maximum_entropy(
                test.kernel,
                test.correlations[i],
                test.noise,
                defaults[i],
                **options,
            ).weights
            for i in indices
        ]
    )


def sparse(test, indices, **options):
    """Sparse modelling's answers to some measurements."""
    return np.array(
        [
            classical.sparse_modelling(
                test.kernel, test.correlations[i], test.noise, **options
            ).weights
            for i in indices
        ]
    )


def independent(test, indices):
    """The answers of ana_cont's maximum entropy, alpha at the kink of chi2; None without it."""
    try:
        from ana_cont.continuation import AnalyticContinuationProblem
    except ImportError:
        return None
    if not hasattr(np, "trapz"):  # Its release of 2024 knows no newer NumPy.
        np.trapz = np.trapezoid
    reach, num_times = 80.0, test.correlations.shape[1]
    edges = kernels.edges("fermionic", _FREQUENCIES, 1.0)
    width = edges[1] - edges[0]
    answers = []
    for i in indices:
        problem = AnalyticContinuationProblem(
            im_axis=np.linspace(0.0, reach, num_times),
            re_axis=0.5 * (edges[1:] + edges[:-1]),
            im_data=test.correlations[i],
            kernel_mode="time_fermionic",
            beta=reach,
        )
        answer, _ = problem.solve(
            method="maxent_svd",
            model=np.full(_FREQUENCIES, 1.0 / (_FREQUENCIES * width)),
            stdev=np.full(num_times, test.noise),
            alpha_determination="chi2kink",
            optimizer="newton",
            interactive=False,
            verbose=False,
        )
        answers.append(answer.A_opt * width)
    return np.array(answers)


class General:
    """`LearnedOptimizer` on the functional of maximum entropy, by the logits of a spectrum.

    alpha is that which maximum entropy chose: how well is the same functional minimised?
    """

    def __init__(self):
        self._logits = tf.Variable(tf.zeros(_FREQUENCIES))
        self._optimizer = LearnedOptimizer()
        self._optimizer.build([self._logits])
        self._start = [tf.constant(v.value) for v in self._optimizer.variables]

    def __call__(self, problem, alpha):
        a = tf.constant(np.pad(problem.a, ((0, 64 - len(problem.b)), (0, 0))), tf.float32)
        b = tf.constant(np.pad(problem.b, (0, 64 - len(problem.b))), tf.float32)
        self._logits.assign(tf.zeros(_FREQUENCIES))
        for variable, value in zip(self._optimizer.variables, self._start, strict=True):
            variable.assign(value)
        alpha = tf.constant(alpha, tf.float32)
        scale = self._loss(a, b, alpha)
        for _ in range(_GENERAL_STEPS):
            self._step(a, b, alpha, scale)
        return tf.nn.softmax(self._logits).numpy().astype(float)

    def _loss(self, a, b, alpha):
        log_p = tf.nn.log_softmax(self._logits)
        p = tf.exp(log_p)
        misfit = 0.5 * tf.reduce_sum(tf.square(tf.linalg.matvec(a, p) - b))
        return misfit + alpha * tf.reduce_sum(p * (log_p + np.log(_FREQUENCIES)))

    @tf.function(autograph=False)
    def _step(self, a, b, alpha, scale):
        with tf.GradientTape() as tape:
            loss = self._loss(a, b, alpha) / scale
        self._optimizer.apply([tape.gradient(loss, self._logits)], [self._logits])


def general(optimizer, test, indices, model, **options):
    """The answers of a `General`, the default model being flat."""
    del model
    answers = []
    for i in indices:
        arguments = test.kernel, test.correlations[i], test.noise
        alpha = classical.maximum_entropy(*arguments, **options).regularisation
        answers.append(optimizer(Problem.of(*arguments), min(alpha, 1e6)))
    return np.array(answers)


def tune(method, test, candidates):
    """The options with the smallest median error, of `method(test, indices, **options)`."""
    indices = range(len(test.truth))
    medians = [
        np.median(evaluation.relative_errors(method(test, indices, **options), test.truth))
        for options in candidates
    ]
    return candidates[int(np.argmin(medians))]


def seconds_alone(function, count=5, clock=time.process_time):
    """Processor time of a function, after a call that compiles."""
    function()
    begin = clock()
    for _ in range(count):
        function()
    return (clock() - begin) / count


def learned(solver, test, jit=False):
    return solving.solve(solver, test.kernel, test.correlations, test.noise, jit)


def with_default(solver, test, indices, blur, **options):
    """Maximum entropy with the learned answers, blurred, as default models."""
    return entropy(
        test, indices, solving.as_default(learned(solver, test).weights, blur), **options
    )


def compare(solver, level):
    """All methods at a noise level: dict that JSON can hold, and answers to draw."""
    tuning = evaluation.make(_TUNING.value, level, _FREQUENCIES, TUNING_SEED)
    helped = functools.partial(with_default, solver)
    plain_options = tune(entropy, tuning, _PLAIN)
    candidates = [{"blur": blur, **aim} for blur in BLURS for aim in _AIMS[1:4]]
    chosen = {
        "maximum entropy": plain_options,
        "sparse modelling": tune(
            sparse,
            evaluation.TestSet(tuning.kernel, tuning.truth[:12], tuning.correlations[:12], level),
            [{"target": target} for target in (0.7, 1.0, 1.4)],
        ),
        "maximum entropy, learned default": tune(helped, tuning, candidates),
    }
    optimizer = General()
    kinds, drawn = {}, None
    for kind, seed, families in (
        ("seen", FRESH_SEED, None),
        ("unseen", UNSEEN_SEED, spectra.UNSEEN),
    ):
        test = evaluation.make(_SPECTRA.value, level, _FREQUENCIES, seed, families)
        every, few = range(_SPECTRA.value), range(_SLOW.value)
        solution = learned(solver, test)
        answers = {
            "learned": solution.weights,
            "maximum entropy": entropy(test, every, **plain_options),
            "maximum entropy, learned default": helped(
                test, every, **chosen["maximum entropy, learned default"]
            ),
            "sparse modelling": sparse(test, few, **chosen["sparse modelling"]),
            "maximum entropy of ana_cont": independent(test, few),
            "LearnedOptimizer() on the entropy": general(optimizer, test, few, **plain_options),
            "flat": np.full_like(test.truth, 1.0 / _FREQUENCIES),
        }
        answers = {name: found for name, found in answers.items() if found is not None}
        kinds[kind] = summarise(answers, solution, test)
        drawn = drawn or (test, answers, solution)
    return {"tuned": chosen, **kinds}, drawn


def mixtures(solver, level, options):
    """How often a mixture of both answers is a better default model: dict that JSON can hold.

    Args:
        solver: `UnrolledSolver`.
        level: of the noise.
        options: of `entropy`, as tuned, for the answer that is to be improved.
    """
    tuning = evaluation.make(_TUNING.value, level, _FREQUENCIES, TUNING_SEED)
    improved = {fraction: improvement(solver, tuning, options, fraction) for fraction in FRACTIONS}
    fraction = max(FRACTIONS, key=lambda x: improved[x]["improves_fraction"])
    result = {"noise": level, "tuned": fraction, "on_tuning": list(improved.values())}
    for kind, seed, families in (
        ("seen", FRESH_SEED, None),
        ("unseen", UNSEEN_SEED, spectra.UNSEEN),
    ):
        test = evaluation.make(_SPECTRA.value, level, _FREQUENCIES, seed, families)
        result[kind] = improvement(solver, test, options, fraction)
    return result


def improvement(solver, test, options, fraction):
    """Maximum entropy with a mixture as default model, to chi2 = 1, against it as tuned."""
    every = range(len(test.truth))
    plain = entropy(test, every, **options)
    mixed = fraction * learned(solver, test).weights + (1.0 - fraction) * plain
    defaults = solving.as_default(mixed, _LITTLE)
    helped = entropy(test, every, defaults, choice="discrepancy")
    before, after = (evaluation.relative_errors(x, test.truth) for x in (plain, helped))
    return {
        "fraction": fraction,
        "improves_fraction": float(np.mean(after < before)),
        "error": float(np.median(after)),
        "error_before": float(np.median(before)),
    }


def summarise(answers, solution, test):
    """The figures of one test set."""
    figures = {
        name: {
            "spectra": len(found),
            **evaluation.figures(found, test.truth[: len(found)]),
        }
        for name, found in answers.items()
    }
    plain, helped = (
        evaluation.relative_errors(answers[name], test.truth)
        for name in ("maximum entropy", "maximum entropy, learned default")
    )
    few = len(answers["sparse modelling"])
    return {
        "methods": figures,
        "maximum_entropy_on_the_few": float(np.median(plain[:few])),
        "default_improves_fraction": float(np.mean(helped < plain)),
        "default_error_ratio_median": float(np.median(helped / plain)),
        "coverage": evaluation.coverage(solution.weights, solution.bars, test.truth).tolist(),
        "chi2_median": float(np.median(solution.chi2)),
        "least_weight": float(solution.weights.min()),
        "largest_error_of_sum": float(np.abs(solution.weights.sum(axis=1) - 1.0).max()),
    }


def times(solver, chosen):
    """Processor time for one spectrum at noise 1e-3, and in a batch: seconds."""
    test = evaluation.make(1000, 1e-3, _FREQUENCIES, FRESH_SEED)
    one = evaluation.TestSet(test.kernel, test.truth[:1], test.correlations[:1], test.noise)
    problem = solving.inputs(Problem.all_of(one.kernel, one.correlations, one.noise))
    batch = solving.inputs(Problem.all_of(test.kernel, test.correlations, test.noise))
    optimizer = General()

    def of_batch(clock):
        run = functools.partial(solving.run, solver, batch, True)
        return seconds_alone(lambda: run()[0].numpy(), 10, clock) / 1000

    own = {
        "learned": seconds_alone(lambda: learned(solver, one, True), 50),
        "learned, network alone": seconds_alone(
            lambda: solving.run(solver, problem, True)[0].numpy(), 50
        ),
        "learned, of a batch of 1000": of_batch(time.process_time),
        "learned, of a batch of 1000, elapsed": of_batch(time.perf_counter),
        "maximum entropy": seconds_alone(
            lambda: entropy(test, range(8), **chosen["maximum entropy"]), 2
        )
        / 8,
        "sparse modelling": seconds_alone(
            lambda: sparse(test, range(4), **chosen["sparse modelling"]), 1
        )
        / 4,
        "LearnedOptimizer() on the entropy": seconds_alone(
            lambda: general(optimizer, test, range(2), **chosen["maximum entropy"]), 1
        )
        / 2,
    }
    if independent(test, range(1)) is not None:
        own["maximum entropy of ana_cont"] = (
            seconds_alone(lambda: independent(test, range(4)), 1) / 4
        )
    return own


def elsewhere(solver):
    """Other kernels and temperatures, and correlated noise: median errors at noise 1e-3."""
    rows = []
    for kernel, reach in _OTHERS:
        tests = [
            evaluation.make(num, 1e-3, _FREQUENCIES, seed, None, kernel, reach)
            for num, seed in _ELSEWHERE
        ]
        rows.append({"kernel": kernel, "reach": reach, "noise": "white"} | medians(solver, *tests))
    white = [evaluation.make(num, 1e-3, _FREQUENCIES, seed) for num, seed in _ELSEWHERE]
    rng = np.random.default_rng(0)
    covariance = 1e-6 * training.covariance(rng, 64, "correlated")
    factor = np.linalg.cholesky(covariance)
    for told, noise in (("covariance", covariance), ("standard errors", 1e-3)):
        tests = [
            test._replace(
                correlations=clean(test, seed)
                + np.random.default_rng(seed).normal(size=(num, 64)) @ factor.T,
                noise=noise,
            )
            for test, (num, seed) in zip(white, _ELSEWHERE, strict=True)
        ]
        row = {"kernel": "fermionic", "reach": 80.0, "noise": f"correlated, {told} told"}
        rows.append(row | medians(solver, *tests))
    return rows


def clean(test, seed):
    """The data of `evaluation.make` for the same seed, almost without noise."""
    return evaluation.make(len(test.truth), 1e-12, _FREQUENCIES, seed).correlations


def medians(solver, tuning, test):
    options = tune(entropy, tuning, _AIMS)
    plain = entropy(test, range(len(test.truth)), **options)
    own = learned(solver, test)
    return {
        "learned": float(np.median(evaluation.relative_errors(own.weights, test.truth))),
        "maximum entropy": float(np.median(evaluation.relative_errors(plain, test.truth))),
        "coverage": evaluation.coverage(own.weights, own.bars, test.truth).tolist(),
    }


def draw_levels(results, file):
    """Median error against noise, an axis for each kind of spectra."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for axis, kind in zip(axes, ("seen", "unseen"), strict=True):
        names = results[0][kind]["methods"]
        for j, name in enumerate(names):
            own = np.array([r[kind]["methods"][name]["relative_error"] for r in results])
            axis.plot(
                evaluation.LEVELS,
                own[:, 0],
                "o-",
                color=f"C{j}",
                lw=2.5 if name == "learned" else 1.2,
                label=name,
            )
        axis.set(xscale="log", yscale="log", xlabel="noise", title=f"{kind} families")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("relative error of the spectrum, median")
    axes[1].legend(fontsize=8, loc="lower left", bbox_to_anchor=(1.0, 0.0))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_spectra(test, answers, solution, level, file):
    """Six spectra with their answers."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 7), layout="constrained", sharex=True)
    edges = kernels.edges("fermionic", _FREQUENCIES, 1.0)
    omega, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    for i, axis in enumerate(axes.flat):
        own = solution.weights[i]
        low, high = np.maximum(own - solution.bars[i, :, 0], 0.0), own + solution.bars[i, :, 0]
        axis.fill_between(omega, test.truth[i] / width, color="0.85", label="true spectrum")
        axis.fill_between(omega, low / width, high / width, color="C0", alpha=0.3, lw=0)
        axis.plot(omega, own / width, color="C0", lw=2, label="learned, and its 68 % bars")
        name = "maximum entropy"
        axis.plot(omega, answers[name][i] / width, color="C1", lw=1.3, label=name)
        name = "maximum entropy, learned default"
        axis.plot(omega, answers[name][i] / width, "--", color="C2", lw=1.3, label=name)
        axis.set_ylim(0, 1.4 * test.truth[i].max() / width)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("frequency, over the largest")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Six spectra of the families of training, noise {level:g}")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def write_comparison(solver, metadata, file):
    results = []
    for level in evaluation.LEVELS:
        result, drawn = compare(solver, level)
        results.append({"noise": level, **result})
        draw_spectra(*drawn, level, os.path.join(_OUT_DIR.value, f"spectra_{level:g}.png"))
        for kind in ("seen", "unseen"):
            own = result[kind]
            for name, figures in own["methods"].items():
                error, distance = figures["relative_error"][0], figures["moved"][0]
                print(f"{level:g} {kind:>6} {name:>34}: error {error:.3f}, moved {distance:.4f}")
            fractions = own["default_improves_fraction"], own["coverage"]
            print(
                f"{level:g} {kind:>6} default improves {fractions[0]:.2f}, coverage {fractions[1]}"
            )
        print(flush=True)
    summary = {
        "weights": {name: metadata[name] for name in ("command", "commit", "sha256")},
        "parameters": solver.count_params(),
        "levels": results,
        "elsewhere": elsewhere(solver),
    }
    provenance.write_results(file, summary)
    draw_levels(results, os.path.join(_OUT_DIR.value, "levels.png"))
    for row in summary["elsewhere"]:
        print(row)


def write_mixtures(solver, comparison, file):
    with open(comparison, encoding="utf-8") as f:
        levels = json.load(f)["levels"]
    rows = [mixtures(solver, row["noise"], row["tuned"]["maximum entropy"]) for row in levels]
    provenance.write_results(file, {"mixtures": rows})
    for row in rows:
        print(row["noise"], row["tuned"], row["seen"], row["unseen"])


def write_times(solver, comparison, file):
    with open(comparison, encoding="utf-8") as f:
        tuned = json.load(f)["levels"][1]["tuned"]
    seconds = times(solver, tuned)
    provenance.write_results(file, {"seconds": seconds})
    for name, each in seconds.items():
        print(f"{name:>40}: {1e3 * each:.3f} ms")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    solver, metadata = saving.load(_WEIGHTS.value)
    os.makedirs(_OUT_DIR.value, exist_ok=True)
    names = ("comparison", "mixtures", "times")
    comparison, mixed, timed = (os.path.join(_OUT_DIR.value, f"{name}.json") for name in names)
    if "comparison" in _PARTS.value:
        write_comparison(solver, metadata, comparison)
    if "mixtures" in _PARTS.value:
        write_mixtures(solver, comparison, mixed)
    if "times" in _PARTS.value:
        write_times(solver, comparison, timed)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
