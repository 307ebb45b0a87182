"""What makes a population of learned optimizers train itself, from a random start.

python benchmarks/population.py --out_dir=benchmarks/results/population

Several ways to train the same random rules on the same noisy quadratics, at equal outer steps of
equal inner steps; then what came of it: as an optimizer of the quadratics, and as a trainer of
a fresh random rule. Killed and run again, it goes on after the last training that ended.
"""

import json
import os

import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import export
from lopt_keras import rules, saved_model
from meta import estimators, provenance, random, smoke, tasks
from meta.population import plots
from meta.population.evolution import Evolution
from meta.population.members import Hyperparameters
from meta.population.population import Population
from meta.population.scoring import Scoring
from meta.population.training import Training
from meta.tasks.scoring.normalized import RelativeToStart

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_OUT_DIR = flags.DEFINE_string("out_dir", "out/population", "For pictures, figures, weights.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Populations of each kind.", 1)
_GENERATIONS = flags.DEFINE_integer("generations", 50, "Of each population.", 1)

_STEP_MULT = flags.DEFINE_float("step_mult", 0.1, "How large the steps of the random rules are.")
_BRIEF = flags.DEFINE_bool(
    "brief", False, "Only the self-trained populations, and those with frozen trainers."
)
smoke.define(seeds=1, generations=1)

_MEMBERS, _STEPS, _HORIZON, _PARTICLES, _STDDEV = 10, 20, 30, 16, 0.1
_RANGES = {"multiplier": (0.01, 1.0), "stddev": (0.03, 0.3)}
_EVOLUTION = Evolution("truncation", num_copied=2, **_RANGES)
_DRIFT = Evolution("none", **_RANGES)
_RATES = tuple(float(f"{x:.2g}") for x in 0.01 * 10.0 ** np.arange(-2.0, 2.5, 0.5))
_MULTIPLIERS = tuple(float(f"{x:.2g}") for x in 10.0 ** np.arange(-2.0, 2.5, 0.5))
_FRESH = 1000  # Seeds of the random rules that the self-trained one is to train.
_NUM_TESTED = 512

SELF, FROZEN, ADAM = "self-trained", "trainers frozen at their start", "tuned Adam"
_ARMS = {
    SELF: (_EVOLUTION, {}),
    FROZEN: (_EVOLUTION, {"pool": "start"}),
    "self-trained, no taking back": (_EVOLUTION, {"takes_back": False}),
    "self-trained, no selection": (_DRIFT, {"takes_back": False}),
    "frozen trainers, no selection": (_DRIFT, {"takes_back": False, "pool": "start"}),
}
"""How populations evolve and are trained: `Evolution`, arguments of `Population`."""
_TRAINED_BY_SELF, _TRAINED_BY_ADAM = "the self-trained one", "Adam"


def make_task():
    """Quadratics of 10 dimensions in 64 variants, as any machine draws them."""
    rng = np.random.default_rng(0)
    condition, noise, start_scale = (
        [float(f"{10.0**x:.4g}") for x in rng.uniform(low, high, 64)]
        for low, high in ((0.0, 3.0), (-2.0, -0.5), (-0.5, 0.5))
    )
    quadratics = tasks.get(
        "quadratic", dimension=10, condition=condition, noise=noise, start_scale=start_scale
    )
    return RelativeToStart(quadratics)


def members_rule():
    """The rule of the populations."""
    return rules.MLP(
        hidden_size=8,
        hidden_layers=1,
        step_mult=_STEP_MULT.value,
        exp_mult=0.3,
        momentum_decays=(0.5, 0.9),
    )


def estimator_of(rule):
    return estimators.get(
        "es", rule, make_task(), num_particles=_PARTICLES, stddev=_STDDEV, unroll_length=_HORIZON
    )


def pool_of(rule, rates):
    """The theta of a hand-designed rule for each learning rate: dict of `[len(rates), ...]`."""
    thetas = [rule(learning_rate=rate).init_theta() for rate in rates]
    return {name: tf.constant(np.stack([x[name] for x in thetas])) for name in thetas[0]}


def same_start(seed, count):
    """One random theta, `count` times."""
    theta = members_rule().init_theta(seed)
    return {name: np.stack([x] * count) for name, x in theta.items()}


def fixed(multipliers):
    """`Hyperparameters` with these multipliers."""
    ones = np.ones(len(multipliers), np.float32)
    return Hyperparameters(np.float32(multipliers), _STDDEV * ones, ones)


class Results:
    """What was measured, by name of the training and seed, kept in a file as it comes."""

    def __init__(self, out_dir):
        self._file = os.path.join(out_dir, "results.json")
        self.found = {}
        if os.path.exists(self._file):
            with open(self._file, encoding="utf-8") as f:
                self.found = json.load(f)
            self.found.pop("made_by", None)

    def get(self, part, name, seed, measure):
        """What `measure()` gave, or gave before."""
        place = self.found.setdefault(part, {}).setdefault(name, {})
        if str(seed) not in place:
            place[str(seed)] = measure()
            provenance.write_results(self._file, self.found)
        return place[str(seed)]


class Study:
    """All trainings; each program is compiled once."""

    def __init__(self, out_dir, generations):
        self._out_dir, self._generations = out_dir, generations
        self._rule = members_rule()
        self._training = Training(estimator_of(self._rule), _STEPS)
        # Adam's state goes on for as long as it trains.
        endless = generations * _STEPS
        self._by_adam = Training(estimator_of(self._rule), endless, rules.Adam())
        self._adam_rates = pool_of(rules.Adam, _RATES)

    def weights(self, seed):
        """Where the best member of a population is exported."""
        return os.path.join(self._out_dir, "weights", f"seed_{seed}")

    def population(self, arm, seed):
        """Scores of every generation: list of lists."""
        evolution, arguments = _ARMS[arm]
        population = self._make(self._training, evolution, seed, **arguments)
        population.run(self._generations)
        if arm == SELF:
            self._keep(population, seed)
        return _rounded(population.genealogy.scores)

    def adam(self, seed):
        """The same of nine members with one start, each trained at another learning rate."""
        return self._side_by_side(self._by_adam, seed, self._adam_rates, range(len(_RATES)), 1.0)

    def fresh(self, trainer, seed):
        """The same of a fresh random rule: each member is trained at another rate or multiplier.

        By the self-trained rule, a tenth member has the multiplier that its population ended with.
        """
        if trainer == _TRAINED_BY_ADAM:
            return self.adam(_FRESH + seed)
        _, theta, metadata = saved_model.read(self.weights(seed))
        pool = {name: tf.constant(np.stack([x] * _MEMBERS)) for name, x in theta.items()}
        evolved = metadata["ancestry"][-1]["hyperparameters"]["multiplier"]
        multipliers = (*_MULTIPLIERS, evolved)
        return self._side_by_side(
            self._training, _FRESH + seed, pool, [0] * _MEMBERS, np.float32(multipliers)
        )

    def _side_by_side(self, training, seed, pool, trainers, multipliers):
        count = len(trainers)
        population = self._make(
            training,
            Evolution("none"),
            seed,
            num_members=count,
            initial_theta=same_start(seed, count),
            pool=pool,
            trainers=list(trainers),
            takes_back=False,
            hyperparameters=fixed(np.broadcast_to(multipliers, count)),
        )
        population.run(self._generations)
        return _rounded(population.genealogy.scores)

    def _make(self, training, evolution, seed, **kwargs):
        return Population(training, evolution, steps_per_generation=_STEPS, seed=seed, **kwargs)

    def _keep(self, population, seed):
        genealogy, best = population.genealogy, population.best
        name = os.path.join(self._out_dir, f"genealogy_{seed}")
        provenance.write_results(f"{name}.json", genealogy.to_dict())
        plots.plot(genealogy, best, f"{name}.png")
        metadata = {
            "command": f"python benchmarks/population.py, seed {seed}",
            "commits": [provenance.commit()],
            "outer_steps": genealogy.generations[-1]["step"],
            "ancestry": genealogy.ancestry(best),
        }
        theta = {name: x[best] for name, x in population.theta.items()}
        export.save(self.weights(seed), self._rule, theta, metadata, overwrite=True)

    def as_optimizers(self, seed):
        """Scores on fresh quadratics: of the self-trained rule, and of Adam at nine rates."""
        _, theta, _ = saved_model.read(self.weights(seed))
        theta = {name: tf.constant(x[None]) for name, x in theta.items()}
        fresh = random.fold_in(random.seed(seed), 99)
        adam = Scoring(estimator_of(rules.Adam()))
        return {
            "self-trained": _rounded(Scoring(estimator_of(self._rule))(theta, fresh, _NUM_TESTED)),
            "Adam": dict(
                zip(
                    map(str, _RATES_OF_ADAM),
                    _rounded(adam(pool_of(rules.Adam, _RATES_OF_ADAM), fresh, _NUM_TESTED)),
                    strict=True,
                )
            ),
        }


_RATES_OF_ADAM = tuple(float(f"{x:.2g}") for x in 10.0 ** np.arange(-2.5, 2.0, 0.5))


def _rounded(values):
    return np.round(np.asarray(values, float), 4).tolist()


def tuned(curves):
    """The column of the best mean over seeds at the end, the last fifth: index.

    Args:
        curves: `[seeds, generations, columns]`.
    """
    tail = curves[:, -max(1, curves.shape[1] // 5) :]
    return int(np.argmin(np.nan_to_num(tail.mean(axis=(0, 1)), nan=np.inf)))


def stack(found):
    """`[seeds, generations, members]`."""
    return np.asarray([found[seed] for seed in sorted(found, key=int)], float)


def steps_to(curve, score):
    """Outer steps until a curve `[generations]` is at a score for the first time, or None."""
    reached = np.flatnonzero(curve <= score)
    return int((reached[0] + 1) * _STEPS) if len(reached) else None


def summarise(found):
    """The figures for tables: dict that JSON can hold."""
    adam = stack(found["trainings"][ADAM])
    rate = tuned(adam)
    summary = {"learning rate of tuned Adam": _RATES[rate]}
    inner = found["as optimizers"]["quadratics"]
    own = np.asarray([inner[s]["self-trained"][0] for s in sorted(inner, key=int)])
    rates = np.asarray([list(inner[s]["Adam"].values()) for s in sorted(inner, key=int)])
    best = int(np.argmin(rates.mean(axis=0)))
    summary["as optimizers"] = {
        "self-trained": own.tolist(),
        f"Adam, rate {_RATES_OF_ADAM[best]}": rates[:, best].tolist(),
    }
    goals = {
        "tuned Adam as inner optimizer": float(rates[:, best].mean()),
        "half way to where tuned Adam as outer optimizer ends": float(
            0.5 * adam[:, -adam.shape[1] // 5 :, rate].mean()
        ),
    }
    summary["goals"] = goals
    for arm in (*_ARMS, ADAM):
        curves = stack(found["trainings"][arm])
        lines = adam[:, :, rate] if arm == ADAM else np.nanmin(curves, axis=2)
        middle = lines if arm == ADAM else np.nanmedian(curves, axis=2)
        tail = slice(-max(1, lines.shape[1] // 5), None)
        summary[arm] = {
            "best, last fifth": lines[:, tail].mean(axis=1).round(3).tolist(),
            "median, last fifth": middle[:, tail].mean(axis=1).round(3).tolist(),
            **{
                f"steps to {name}": [steps_to(line, goal) for line in lines]
                for name, goal in goals.items()
            },
        }
    summary["a fresh random rule"] = _summarise_fresh(found["fresh"])
    return summary


def _summarise_fresh(found):
    chosen = {}
    for name, settings in ((_TRAINED_BY_SELF, _MULTIPLIERS), (_TRAINED_BY_ADAM, _RATES)):
        curves = stack(found[name])
        index = tuned(curves[:, :, : len(settings)])
        tail = slice(-max(1, curves.shape[1] // 5), None)
        chosen[name] = {
            "tuned to": settings[index],
            "last fifth": curves[:, tail, index].mean(axis=1).round(3).tolist(),
        }
        if curves.shape[2] > len(settings):
            last = curves[:, tail, -1].mean(axis=1).round(3).tolist()
            chosen[name]["last fifth, with the multiplier of its population"] = last
    return chosen


def plot(found, file):
    """Best and median of each way to train, and fresh rules trained by what came of it."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 5), sharey=True, layout="constrained")
    for i, arm in enumerate(_ARMS):
        curves = stack(found["trainings"][arm])
        for axis, pick in zip(axes, (np.nanmin, np.nanmedian), strict=False):
            _draw(axis, pick(curves, axis=2), arm, f"C{i}")
    adam = stack(found["trainings"][ADAM])
    rate = tuned(adam)
    for axis, title in zip(axes, ("best of the population", "median"), strict=False):
        _draw(axis, adam[:, :, rate], f"Adam, tuned: {_RATES[rate]:g}", "black")
        axis.set_title(title)
    for i, (name, settings) in enumerate(
        ((_TRAINED_BY_SELF, _MULTIPLIERS), (_TRAINED_BY_ADAM, _RATES))
    ):
        curves = stack(found["fresh"][name])
        index = tuned(curves[:, :, : len(settings)])
        color = ("C0", "black")[i]
        _draw(axes[2], curves[:, :, index], f"by {name}, tuned: {settings[index]:g}", color)
    axes[2].set_title("a fresh random rule, trained")
    inner = found["as optimizers"]["quadratics"]
    rates = np.asarray([list(inner[s]["Adam"].values()) for s in inner])
    for axis in axes:
        axis.axhline(rates.mean(axis=0).min(), color="C3", ls=":", label="inner: Adam, tuned")
        axis.set(xlabel="outer step", ylim=(None, 0.6))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("mean log(loss / loss at the start), fresh problems")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_brief(found, file):
    """Best of the self-trained populations, and of those with frozen trainers."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, arm in enumerate((SELF, FROZEN)):
        _draw(axis, np.nanmin(stack(found["trainings"][arm]), axis=2), arm, f"C{i}")
    axis.set(xlabel="outer step", ylabel="best score of the population")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _draw(axis, curves, label, color):
    """Median over seeds, and each seed thin: `[seeds, generations]`."""
    steps = _STEPS * np.arange(1, curves.shape[1] + 1)
    axis.plot(steps, np.nanmedian(curves, axis=0), color=color, lw=2, label=label)
    axis.plot(steps, curves.T, color=color, lw=0.5, alpha=0.5)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    out_dir = _OUT_DIR.value
    os.makedirs(out_dir, exist_ok=True)
    results, study = Results(out_dir), Study(out_dir, _GENERATIONS.value)
    arms = (SELF, FROZEN) if _BRIEF.value else _ARMS
    for seed in range(_SEEDS.value):
        for arm in arms:
            results.get("trainings", arm, seed, lambda a=arm, s=seed: study.population(a, s))
        if not _BRIEF.value:
            measure_the_rest(results, study, seed)
        print(f"Seed {seed} is done.", flush=True)
    draw = plot_brief if _BRIEF.value else plot
    draw(results.found, os.path.join(out_dir, "population.png"))
    if not _BRIEF.value:
        provenance.write_results(os.path.join(out_dir, "summary.json"), summarise(results.found))


def measure_the_rest(results, study, seed):
    """Adam in the place of trainers, and what came of the self-trained population."""
    results.get("trainings", ADAM, seed, lambda: study.adam(seed))
    results.get("as optimizers", "quadratics", seed, lambda: study.as_optimizers(seed))
    for name in (_TRAINED_BY_SELF, _TRAINED_BY_ADAM):
        results.get("fresh", name, seed, lambda n=name: study.fresh(n, seed))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
