"""Pictures of an analysis: panels of curves side by side."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker

_WIDTH, _HEIGHT, _WIDEST = 4.6, 3.6, 3
_FEW_TICKS = 6


class Curve(NamedTuple):
    """One curve of a panel.

    Attributes:
        label: for the legend; curves of one label have one colour.
        x, y: `[N]`.
        marks: a marker of matplotlib instead of a line, or "".
        dashed: whether it is.
    """

    label: str
    x: Any
    y: Any
    marks: str = ""
    dashed: bool = False


class Panel(NamedTuple):
    """Axes with curves on them.

    Attributes:
        title, x_label, y_label: texts.
        curves: list of `Curve`.
        log_x, log_y: whether axes are logarithmic; "symlog" with a scale where both signs occur.
        arrows: a `state_space.Flow` to draw below the curves, or None.
        equal: whether both axes have one unit.
        x_ticks: the values of x that are written out, or None.
    """

    title: str
    x_label: str
    y_label: str
    curves: Any
    log_x: Any = False
    log_y: Any = False
    arrows: Any = None
    equal: bool = False
    x_ticks: Any = None


def draw(file: str, panels: Sequence[Panel], title: str = "") -> None:
    """Draws panels side by side, in rows of three, or of two if there are four, into a PNG."""
    columns = 2 if len(panels) == 4 else min(len(panels), _WIDEST)
    rows = -(-len(panels) // columns)
    size = (_WIDTH * columns + 1.4, _HEIGHT * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    colours = {label: f"C{i}" for i, label in enumerate(labels)}
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel, colours, handles)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    if any(labels):
        named = [label for label in labels if label]
        figure.legend([handles[x] for x in named], named, loc="outside right upper", fontsize=8)
    figure.suptitle(title)
    figure.savefig(f"{file}.tmp", dpi=90, format="png")
    os.replace(f"{file}.tmp", file)
    plt.close(figure)


def _draw_panel(
    axis: Any, panel: Panel, colours: Mapping[str, str], handles: dict[str, Any]
) -> None:
    if panel.arrows is not None:
        flow = panel.arrows
        speeds = np.hypot(flow.first_speed, flow.second_speed)
        axis.quiver(
            flow.first, flow.second, flow.first_speed, flow.second_speed, speeds, cmap="Greys"
        )
    for curve in panel.curves:
        style: dict[str, Any] = (
            {"marker": curve.marks, "ls": "", "mfc": "none"} if curve.marks else {"lw": 1.6}
        )
        if curve.dashed:
            style["ls"] = "--"
        colour = colours[curve.label] if curve.label else "0.3"
        (handle,) = axis.plot(curve.x, curve.y, color=colour, **style)
        handles.setdefault(curve.label, handle)
    for name, scale in (("x", panel.log_x), ("y", panel.log_y)):
        if isinstance(scale, bool):
            getattr(axis, f"set_{name}scale")("log" if scale else "linear")
        else:
            getattr(axis, f"set_{name}scale")("symlog", linthresh=scale)
            getattr(axis, f"{name}axis").get_major_locator().set_params(numticks=_FEW_TICKS)
    if panel.x_ticks is not None:
        axis.set_xticks(panel.x_ticks, [f"{x:g}" for x in panel.x_ticks])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    if panel.equal:
        axis.set_aspect("equal", adjustable="datalim")
