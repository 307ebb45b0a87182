"""The sections of a report: each asks one question of a subject, beside Adam."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt_keras.types import Array
from meta import random
from meta.analysis import (
    adaptation,
    clipping,
    directions,
    fixed_points,
    linearisation,
    regularisation,
    scaling,
    schedule,
    state_space,
)
from meta.analysis.dynamics import Dynamics
from meta.analysis.plots import Curve, Panel
from meta.analysis.recording import Recording
from meta.analysis.study import ADAM, Study
from meta.analysis.subject import Subject

_STARTS = 8
_GRID = np.array([0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0])
_MODES = 4
_SHOWN = 0.005
_STEADY = (0.1, 1.0, 10.0)
_SWEEP_STEPS = 60
_SMOOTHED = 10


class Section(NamedTuple):
    """What a question found.

    Attributes:
        title: the question.
        findings: sentences.
        tables: list of `Table`.
        panels: list of `Panel`.
        data: what the sentences and tables are made of, dict that JSON can hold.
    """

    title: str
    findings: Any
    tables: Any
    panels: Any
    data: Any


class Table(NamedTuple):
    """Attributes: `heads`, and `rows`: lists of texts and numbers."""

    heads: Any
    rows: Any


def training(study: Study) -> Section:
    """How well it trains."""
    curves, rows, data = [], [], {}
    for name, found in _trainings(study):
        losses = _smooth(found.kept_train_loss.mean(axis=1))
        held_out = _smooth(found.validation_loss.mean(axis=1))
        steps = np.arange(len(losses))
        curves += [Curve(name, steps, losses), Curve(name, steps, held_out, dashed=True)]
        rows.append([name, losses[0], losses[-1], held_out[-1]])
        data[name] = {"train_loss": losses[-1], "validation_loss": held_out[-1]}
    lowest = min(curve.y.min() for curve in curves)
    panel = Panel(
        "training loss, held-out loss dashed", "step", "loss", curves, log_y=bool(lowest > 0)
    )
    best = min(rows, key=lambda row: row[2])
    sentence = f"The lowest training loss at the end is that of {best[0]}: {_short(best[2])}."
    heads = ["optimizer", "loss at the start", "training loss at the end", "held-out loss"]
    return Section("How does it train?", [sentence], [Table(heads, rows)], [panel], data)


def fixed_point(study: Study) -> Section:
    """Where its state rests."""
    rows, curves, findings, data = [], [], [], {}
    for subject, kind, dynamics in _systems(study):
        size = study.gradient_size(subject, kind)
        quiet = dynamics.at(loss=None)
        states = study.driven(subject, kind)[0].reshape(-1, dynamics.size)
        starts = states[np.linspace(0, len(states) - 1, _STARTS).astype(int)]
        # What stays as it is whatever happens, such as counts of losses, is the same in all.
        still = (quiet(starts, size)[0] == starts).all(axis=0)
        starts[:, still] = starts[0, still]
        grid = size * np.concatenate([-_GRID[:0:-1], _GRID])
        found = fixed_points.along(quiet, starts, grid)
        label = f"{subject.name}, {kind}"
        counts = sorted({len(points.states) for points in found})
        fractions = [points.counts.sum() / points.num_starts for points in found]
        slowest = max(points.slowest for points in found)
        rows.append([label, len(grid), _span(counts), min(fractions), slowest])
        steps = [
            quiet(points.states[:1], g)[1][0] if len(points.states) else np.nan
            for g, points in zip(grid, found, strict=True)
        ]
        curves.append(Curve(label, grid / size, np.asarray(steps)))
        findings.append(_rest(label, counts, fractions))
        data[label] = {"counts": [len(p.states) for p in found], "steps": steps, "gradients": grid}
    panel = Panel(
        "step at the fixed point", "constant gradient / typical size", "step", curves, log_x=0.01
    )
    heads = ["rule, tensor", "gradients tried", "fixed points for each"]
    heads += ["fraction of starts that end there, at least", "speed there, at most"]
    return Section("Does its state come to rest?", findings, [Table(heads, rows)], [panel], data)


def _rest(label: str, counts: Sequence[int], fractions: Sequence[float]) -> str:
    reached = np.mean(fractions)
    if counts == [1]:
        return f"{label}: one fixed point for every constant gradient, as the paper finds."
    if not reached:
        return f"{label}: no fixed point; some of the state always moves."
    return f"{label}: {_span(counts)} fixed points, where {100 * reached:.0f} % of the starts end."


def momentum(study: Study) -> Section:
    """The momenta that its step is a sum of."""
    rows, impulses, modes, findings, data = [], [], [], [], {}
    at = study.num_steps // 2
    for subject, kind, dynamics in _systems(study):
        size = study.gradient_size(subject, kind)
        drift = schedule.drift(dynamics.at(noise=size), at)
        now = dynamics.at(noise=size, step=at)
        found = linearisation.linearise(now, drift.states[-1])
        label = f"{subject.name}, {kind}"
        first = np.argsort(-np.abs(found.total_rates), kind="stable")[:_MODES]
        fraction = np.real(found.total_rates) / found.rate
        parts = "; ".join(
            f"{found.momenta[i]:.4g} ({100 * fraction[i]:.0f} %)"
            for i in first
            if abs(fraction[i]) >= _SHOWN
        )
        relative = found.rate * size
        rows.append([label, found.momentum, found.rate, relative, parts, found.error])
        scale = np.abs(found.impulse).max()
        impulses.append(Curve(label, np.arange(40), -found.impulse[:40] / scale))
        modes.append(Curve(label, found.spectrum.real, found.spectrum.imag, marks="o"))
        findings.append(
            f"{label}: near step {at} the step is like a momentum of {found.momentum:.3g} at a "
            f"learning rate of {_short(found.rate)}; its modes, with their parts of the "
            f"rate, are {parts}."
        )
        data[label] = {
            "momentum": found.momentum,
            "rate": found.rate,
            "momenta": found.momenta[first],
            "shares": fraction[first],
            "timescales": found.timescales[first],
            "error": found.error,
        }
    circle = np.linspace(0, 2 * np.pi, 100)
    unit = Curve("", np.cos(circle), np.sin(circle), dashed=True)
    panels = [
        Panel("response to one gradient", "steps later", "step / largest", impulses),
        Panel("eigenvalues of the state's map", "real", "imaginary", [unit, *modes], equal=True),
    ]
    heads = ["rule, tensor", "equivalent momentum", "learning rate", "rate x typical gradient"]
    heads += ["momenta (fraction of the rate)", "error of the sum"]
    return Section("Which momentum does it have?", findings, [Table(heads, rows)], panels, data)


def clip(study: Study) -> Section:
    """How its step saturates."""
    rows, curves, findings, data = [], [], [], {}
    at = study.num_steps // 2
    for subject, kind, dynamics in _systems(study):
        size = study.gradient_size(subject, kind)
        drift = schedule.drift(dynamics.at(noise=size), at)
        found = clipping.measure(dynamics.at(step=at), drift.states[-1], scale=size)
        label = f"{subject.name}, {kind}"
        thresholds = [x / size for x in found.thresholds]
        rows.append([label, found.slope, found.linear_range / size, *thresholds, found.asymmetry])
        moved = found.updates - found.offset
        curves.append(Curve(label, found.gradients / size, moved / np.abs(moved).max()))
        findings.append(_clips(label, thresholds))
        data[label] = {
            "thresholds": thresholds,
            "linear_range": found.linear_range / size,
            "asymmetry": found.asymmetry,
        }
    panel = Panel(
        f"step {at} against its gradient",
        "gradient / typical size",
        "step / largest",
        curves,
        log_x=0.1,
    )
    heads = ["rule, tensor", "slope at zero", "linear up to (typical sizes)"]
    heads += ["clips negative at", "clips positive at", "asymmetry"]
    return Section("Does it clip gradients?", findings, [Table(heads, rows)], [panel], data)


def _clips(label: str, thresholds: Any) -> str:
    if not np.isfinite(thresholds).any():
        return f"{label}: it does not clip; the step grows with the gradient without bound."
    low, high = min(thresholds), max(thresholds)
    return f"{label}: it clips at {_span([low, high])} times the typical gradient."


def schedules(study: Study) -> Section:
    """How its rate changes with time alone, and what its controller does in a training."""
    rows, curves, findings, data = [], [], [], {}
    for subject, kind, dynamics in _systems(study):
        size = study.gradient_size(subject, kind)
        for told in (False, True) if study.hears_horizon(subject) else (False,):
            horizon = study.num_steps if told else 0
            found = schedule.drift(dynamics.at(noise=size, total_steps=horizon), study.num_steps)
            label = f"{subject.name}, {kind}" + (", told" if told else "")
            own = f"{subject.name}, {kind}"
            curves.append(Curve(own, found.steps + 1, found.rates * size, dashed=told))
            rows.append([label, *_shape(found)])
            findings.append(_schedule_sentence(label, found))
            data[label] = {
                "peak": found.peak,
                "rates": found.rates[:: max(1, study.num_steps // 50)] * size,
                **dict(zip(("shape", "time", "error", "fall"), _shape(found)[1:], strict=True)),
            }
    title = "rate x typical gradient"
    if study.hears_horizon(study.subject):
        title += " (dashed: told)"
    panels = [Panel(title, "step", "step size", curves, log_x=True, log_y=True)]
    controlled, controls = _controls(study)
    panels += controlled
    data["controls"] = controls
    heads = [
        "rule, tensor",
        "peak at step",
        "shape after it",
        "time",
        "error",
        "rate at the end / peak",
    ]
    return Section("Which schedule does it follow?", findings, [Table(heads, rows)], panels, data)


def _shape(found: schedule.Drift) -> list[Any]:
    peak, rates = found.peak, found.rates
    fall = float(rates[-1] / rates[peak])
    if peak > len(rates) - 8 or not (rates[peak:] > 0).all():
        return [peak, "", np.nan, np.nan, fall]
    fit = schedule.fit(found.steps[peak:] - peak, rates[peak:])
    return [peak, fit.shape, fit.time, fit.error, fall]


def _schedule_sentence(label: str, found: schedule.Drift) -> str:
    peak, shape, time, _, fall = _shape(found)
    rise = found.rates[peak] / found.rates[0] if found.rates[0] > 0 else np.inf
    text = f"{label}: "
    if peak and rise > 1.05:
        text += f"the rate rises {_short(rise)}-fold until step {peak}, then "
    if not shape:
        return text + f"ends at {_short(fall)} of its peak."
    what = shape if np.isnan(time) else f"{shape} with T = {_short(time)}"
    return text + f"it is like {what}, and ends at {_short(fall)} of its peak."


def _controls(study: Study) -> tuple[list[Panel], dict[str, Any]]:
    """Panels and data of what a controller chose in the trainings, by kind of tensor."""
    panels: list[Panel] = []
    data: dict[str, Any] = {}
    told = (False, True) if study.hears_horizon(study.subject) else (False,)
    found = {x: study.training(study.subject, x) for x in told}
    for name in found[False].controls:
        curves = []
        for is_told, recording in found.items():
            for kind in dict.fromkeys(recording.kinds):
                chosen = directions.of_kind(recording, kind)
                values = recording.controls[name][:, :, chosen].mean(axis=(1, 2))
                label = kind + (", told" if is_told else "")
                own = f"{study.subject.name}, {kind}"
                steps = np.arange(1, len(values) + 1)
                curves.append(Curve(own, steps, _smooth(values), dashed=is_told))
                picked = [0, len(values) // 10, len(values) // 2, len(values) - 1]
                data.setdefault(name, {})[label] = values[picked]
        panels.append(Panel(f"controller: {name}", "step", name, curves, log_x=True))
    return panels, data


def adapt(study: Study) -> Section:
    """What it makes of the size of gradients, and of other tasks."""
    rows, curves, panels, findings, data = [], [], [], [], {}
    for subject, kind, dynamics in _systems(study):
        size = study.gradient_size(subject, kind)
        gradients = size * np.geomspace(0.01, 100.0, 9)
        found = adaptation.measure(dynamics, gradients, study.num_steps)
        label = f"{subject.name}, {kind}"
        near, far = found.exponents[0], found.exponents[-1]
        rows.append([label, found.exponent, near, far])
        curves.append(Curve(label, gradients / size, np.abs(found.updates)))
        panels.append(_steady(dynamics, found, size, label))
        findings.append(
            f"{label}: the step grows with the gradient's size to the power "
            f"{found.exponent:.3f} (1 is in proportion, 0 is not at all)."
        )
        data[label] = {"exponent": found.exponent, "exponents": found.exponents}
    panel = Panel(
        "|step| in the end of constant gradients",
        "gradient / typical size",
        "|step|",
        curves,
        log_x=True,
        log_y=True,
    )
    heads = ["rule, tensor", "power", "for small gradients", "for large ones"]
    title = "Does it adapt to the size of gradients?"
    return Section(title, findings, [Table(heads, rows)], [panel, *panels], data)


def _steady(dynamics: Dynamics, found: adaptation.Adaptation, size: float, label: str) -> Panel:
    """The step against one gradient, from where constant gradients of three sizes have led."""
    gradients, curves = size * np.linspace(-3.0, 3.0, 31), []
    for before, state in zip(found.gradients, found.states, strict=True):
        if np.isclose(before / size, _STEADY).any():
            states = np.repeat(state[None], len(gradients), axis=0)
            steps = dynamics(states, gradients)[1]
            curves.append(Curve(f"after gradients of {before / size:.3g}", gradients / size, steps))
    return Panel(f"{label}: one more step", "gradient / typical size", "step", curves)


def scale(study: Study) -> Section:
    """How its steps depend on loss scale, batch size, width and depth."""
    rows, findings, panels = [], [], []
    data: dict[str, dict[str, Any]] = {}
    for name, (values, make_task) in scaling.VARIANTS.items():
        curves = []
        for subject in study.subjects:
            seed = random.fold_in(study.seed, 2)
            try:
                found = scaling.sweep(subject, values, make_task, _SWEEP_STEPS, seed)
            except ValueError as error:
                findings.append(f"{subject.name}, {name}: not measured. {error}")
                continue
            rows.append([name, subject.name, *found.relative, found.exponent, found.rate_exponent])
            curves.append(Curve(subject.name, found.values, found.relative))
            data.setdefault(name, {})[subject.name] = {
                "relative": found.relative,
                "exponent": found.exponent,
                "rate_exponent": found.rate_exponent,
            }
            findings.append(_scaling_sentence(subject.name, name, found))
        title = f"steps against the {name}"
        labels = title, name, "step / parameter"
        panels.append(Panel(*labels, curves, log_x=True, log_y=True, x_ticks=values))
    heads = ["changed", "optimizer", "lowest value", "middle", "highest", "power"]
    heads += ["power of the rate"]
    title = "Does it adapt to batch size, width and depth?"
    return Section(title, findings, [Table(heads, rows)], panels, data)


def _scaling_sentence(subject: str, name: str, found: scaling.Sweep) -> str:
    grow = f"{subject}, {name}: steps over parameters grow with it to the power "
    grow += f"{found.exponent:.2f}"
    if np.isnan(found.rate_exponent):
        return f"{grow}; some steps go against the gradient, which leaves no learning rate."
    rate = f"{found.rate_exponent:.2f}"
    return f"{grow}; the learning rate along the gradient to the power {rate}."


def direction(study: Study) -> Section:
    """Which known directions its steps are made of."""
    rows, panels, findings, data = [], [], [], {}
    for subject in study.subjects:
        found = study.training(subject)
        parts = directions.along(found)
        for kind in dict.fromkeys(found.kinds):
            chosen = directions.of_kind(found, kind)
            own = {name: [x[i] for i in chosen] for name, x in parts.items()}
            explained = directions.explain([found.updates[i] for i in chosen], own)
            label = f"{subject.name}, {kind}"
            for i, name in enumerate(explained.names):
                cells = (explained.cosines[i], explained.alone[i], explained.coefficients[i])
                rows.append([label, name, *cells, explained.lost[i]])
            best = explained.names[int(np.argmax(explained.alone))]
            findings.append(
                f"{label}: together the directions explain {100 * explained.variance:.1f} % of the "
                f"steps; alone, {best} explains the most, {100 * explained.alone.max():.1f} %."
            )
            data[label] = explained._asdict()
        panels.append(_cosine_panel(subject, found, parts))
    heads = ["rule, tensor", "direction", "cosine", "explains alone", "coefficient", "lost without"]
    title = "Which directions does it go?"
    return Section(title, findings, [Table(heads, rows)], panels, data)


def _cosine_panel(subject: Subject, found: Recording, parts: Any) -> Panel:
    curves = []
    for name, tensors in parts.items():
        pairs = zip(found.updates, tensors, strict=True)
        products = sum((u * d).reshape(len(u), -1).sum(axis=1) for u, d in pairs)
        sizes = [
            np.sqrt(sum(np.square(x).reshape(len(x), -1).sum(1) for x in xs))
            for xs in (found.updates, tensors)
        ]
        cosine = -products / np.maximum(sizes[0] * sizes[1], 1e-30)
        curves.append(Curve(name, np.arange(len(cosine)), _smooth(cosine)))
    return Panel(f"{subject.name}: cosines of the steps", "step", "cosine", curves)


def regularise(study: Study) -> Section:
    """What it does to weights and to held-out loss."""
    rows, findings = [], []
    data: dict[str, Any] = {}
    for name, found in _trainings(study):
        parts = directions.along(found)
        decay = regularisation.decay(found, parts)
        growth = float(decay.growth.mean())
        rows.append([name, decay.fraction, decay.along, growth])
        findings.append(
            f"{name}: the norm of the weights ends at {_short(growth)} of that at the start; a "
            f"step takes away {_short(decay.fraction)} of a parameter beside its known directions."
        )
        data[name] = {"share": decay.fraction, "along": decay.along, "growth": growth}
    tables = [
        Table(["optimizer", "weight decay a step", "along the weights", "norm at the end"], rows)
    ]
    own, adam = (study.training(subject) for subject in study.subjects)
    gap = regularisation.at_equal_training_loss(own, adam)
    heads = ["training loss", f"held-out loss, {study.subject.name}", ADAM]
    heads += [f"norm, {study.subject.name}", ADAM]
    tables.append(Table(heads, list(map(list, zip(*gap, strict=True)))))
    names = study.subject.name, ADAM
    panels = [
        Panel(
            title,
            "training loss",
            label,
            [Curve(name, gap.levels, y) for name, y in zip(names, values, strict=True)],
        )
        for title, label, values in (
            ("held-out loss at equal training loss", "held-out loss", (gap.first, gap.second)),
            ("norm there, over the start", "norm", (gap.first_norms, gap.second_norms)),
        )
    ]
    difference = float((gap.first - gap.second)[-1])
    word = "higher" if difference > 0 else "lower"
    findings.append(
        f"At a training loss of {_short(gap.levels[-1])}, the lowest that both reach, its held-out "
        f"loss is {_short(abs(difference))} {word} than that of Adam ({_short(gap.second[-1])})."
    )
    data["gap"] = {name: list(map(float, x)) for name, x in gap._asdict().items()}
    return Section("How does it regularise?", findings, tables, panels, data)


def states(study: Study) -> Section:
    """The space that its states fill."""
    rows, panels, findings, data = [], [], [], {}
    for subject, kind, dynamics in _systems(study):
        visited, _, _ = study.driven(subject, kind)
        found = state_space.components(visited, standardised=True)
        label = f"{subject.name}, {kind}"
        fractions = np.pad(found.fractions, (0, max(0, 3 - len(found.fractions))))
        rows.append([label, dynamics.size, found.dimension, *fractions])
        findings.append(
            f"{label}: {dynamics.size} numbers of state, of which the first two components hold "
            f"{100 * fractions[:2].sum():.0f} % of the variance."
        )
        data[label] = {"size": dynamics.size, "shares": fractions}
        if len(found.axes) > 1:
            quiet = dynamics.at(loss=None, step=study.num_steps)
            flow = state_space.flow(quiet, found, visited)
            paths = [found.project(visited[:, i])[:, :2].T for i in range(3)]
            curves = [Curve("", *path) for path in paths]
            curves += [Curve("", path[0, :1], path[1, :1], marks="o") for path in paths]
            panels.append(
                Panel(
                    f"{label}: trajectories from the circles",
                    "first component",
                    "second",
                    curves,
                    arrows=flow,
                )
            )
    heads = ["rule, tensor", "numbers", "effective dimension", "first", "second", "third component"]
    return Section("Which states does it visit?", findings, [Table(heads, rows)], panels, data)


SECTIONS = {
    "training": training,
    "fixed_points": fixed_point,
    "momentum": momentum,
    "clipping": clip,
    "schedule": schedules,
    "adaptation": adapt,
    "scaling": scale,
    "directions": direction,
    "regularisation": regularise,
    "state_space": states,
}
"""By name, the functions from a `Study` to a `Section`."""


def _systems(study: Study) -> Iterator[tuple[Subject, str, Dynamics]]:
    """The subject, kind and `Dynamics` of everything that is looked at."""
    for subject in study.subjects:
        for kind, dynamics in study.systems(subject).items():
            yield subject, kind, dynamics


def _trainings(study: Study) -> Iterator[tuple[str, Recording]]:
    """Names and recordings: of the subject, told too if it listens, and of Adam."""
    subject = study.subject
    yield subject.name, study.training(subject)
    if study.hears_horizon(subject):
        yield f"{subject.name}, told", study.training(subject, signals_known=True)
    yield ADAM, study.training(study.adam)


def _smooth(values: Any) -> Array:
    """Mean over the last steps up to each, fewer at the start."""
    total = np.cumsum(np.concatenate([np.zeros(1), values.astype("float64")]))
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - _SMOOTHED, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def _span(values: Any) -> str:
    low, high = _short(min(values)), _short(max(values))
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    return f"{value:.3g}"
