"""A correlation function from a file, checked, and a spectrum to a file."""

import csv
import os
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lopt_keras.types import Array
from meta import files
from meta.continuation import kernels

_FEWEST_TIMES = 8
# How many standard errors a value may be where no correlation function can be.
_TOLERANCE = 6.0


class Measurement(NamedTuple):
    """G at imaginary times.

    Attributes:
        times: `[T]`, increasing, in [0, beta].
        correlation: G, `[T]`.
        noise: standard errors, `[T]`, or their covariance, `[T, T]`.
    """

    times: np.ndarray
    correlation: np.ndarray
    noise: np.ndarray

    @property
    def errors(self) -> Array:
        """Standard errors, `[T]`."""
        return self.noise if self.noise.ndim == 1 else np.sqrt(np.diag(self.noise))


def read(file: str, noise: float | None = None) -> Measurement:
    """The measurement in a file.

    Args:
        file: `.csv`, with a header `tau,G` or `tau,G,error` and a row for each time; or `.npz`,
            with arrays `tau` and `G`, and `error` or `covariance`.
        noise: the standard error of all values, where the file has none.

    Raises:
        ValueError: naming the file, if it is none of these, or if the noise is missing or
            told twice.
    """
    columns = _read_npz(file) if file.endswith(".npz") else _read_csv(file)
    told = [name for name in ("error", "covariance") if name in columns]
    if len(told) + (noise is not None) != 1:
        raise ValueError(
            "The noise must be told once: in the file, as `error` or `covariance`, or by `noise`. "
            f"Received: {file!r} with {sorted(columns)}, noise={noise}"
        )
    size = len(np.atleast_1d(columns["tau"]))
    error = np.full(size, float(noise)) if noise is not None else columns[told[0]]
    return Measurement(columns["tau"], columns["G"], error)


def _read_csv(file: str) -> dict[str, Array]:
    try:
        with open(file, encoding="utf-8", newline="") as f:
            header, *rows = [row for row in csv.reader(f) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`input` must be a readable CSV file: {error}") from error
    except ValueError as error:
        raise ValueError(f"`input` must not be empty. Received: {file!r}") from error
    header = [name.strip() for name in header]
    if header not in (["tau", "G"], ["tau", "G", "error"]):
        raise ValueError(
            f"The header of {file!r} must be `tau,G` or `tau,G,error`. Received: {','.join(header)}"
        )
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(
                f"Row {i + 1} of {file!r} must have {len(header)} values. Received: {row}"
            )
    try:
        table = np.array(rows, np.float64).reshape(len(rows), len(header))
    except ValueError as error:
        raise ValueError(f"{file!r} must hold numbers below its header: {error}") from error
    return dict(zip(header, table.T, strict=True))


def _read_npz(file: str) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = {
                name: arrays[name].astype(np.float64)
                for name in ("tau", "G", "error", "covariance")
                if name in arrays
            }
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"`input` must be a readable npz file of numbers: {error}") from error
    if missing := {"tau", "G"} - set(columns):
        raise ValueError(f"{file!r} must have the arrays `tau` and `G`. Missing: {missing}")
    return columns


def check(measurement: Measurement, kernel: str, beta: float) -> None:
    """Raises a ValueError, which says what is wrong, unless this may be a correlation function.

    All three kernels are positive and convex in tau, and so is G, within its errors; for the
    kernel "laplace" it also falls.

    Args:
        measurement: `Measurement`.
        kernel: of `kernels.KERNELS`.
        beta: inverse temperature.
    """
    if kernel not in kernels.KERNELS:
        raise ValueError(f"`kernel` must be one of {sorted(kernels.KERNELS)}. Received: {kernel!r}")
    if not (np.isfinite(beta) and beta > 0):
        raise ValueError(f"`beta` must be a positive number. Received: beta={beta}")
    times, correlation, noise = measurement
    if times.ndim != 1 or len(times) < _FEWEST_TIMES:
        raise ValueError(
            f"`tau` must be at least {_FEWEST_TIMES} times. Received: an array of shape "
            f"{times.shape}"
        )
    if correlation.shape != times.shape:
        raise ValueError(
            f"`G` must have a value for each of {len(times)} times. Received: an array of shape "
            f"{correlation.shape}"
        )
    for name, values in (("tau", times), ("G", correlation), ("error", noise)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"`{name}` must be finite. Received: {values.flat[bad[0]]} at position {bad[0]}"
            )
    if noise.shape not in (times.shape, (len(times),) * 2):
        raise ValueError(
            f"`error` must have a value for each of {len(times)} times. Received: an array of "
            f"shape {noise.shape}"
        )
    if noise.ndim == 1 and noise.min() <= 0:
        raise ValueError(f"`error` must be positive: no data are exact. Received: {noise.min()}")
    if (np.diff(times) <= 0).any():
        raise ValueError(
            "`tau` must increase from row to row. Received: "
            f"{times[np.argmin(np.diff(times)) + 1]} after {times[np.argmin(np.diff(times))]}"
        )
    if times[0] < 0 or times[-1] > beta * (1 + 1e-9):
        raise ValueError(
            f"`tau` must be in [0, beta], beta={beta}. Received: from {times[0]} to {times[-1]}"
        )
    _check_shape(times, correlation, measurement.errors, kernel)


def _check_shape(times: Array, correlation: Array, errors: Array, kernel: str) -> None:
    worst = np.argmin(correlation / errors)
    if correlation[worst] < -_TOLERANCE * errors[worst]:
        raise ValueError(
            "`G` must be positive: the sign is that of G = integral K A. Received: "
            f"{correlation[worst]} at tau={times[worst]}. For -<c c^+>, give -G."
        )
    # G at a time must not lie above the line through its neighbours.
    fraction = (times[1:-1] - times[:-2]) / (times[2:] - times[:-2])
    above = correlation[1:-1] - (1 - fraction) * correlation[:-2] - fraction * correlation[2:]
    allowed = np.square(errors[1:-1])
    allowed = allowed + np.square((1 - fraction) * errors[:-2]) + np.square(fraction * errors[2:])
    if (bend := above / np.sqrt(allowed)).max() > _TOLERANCE:
        where = times[1:-1][np.argmax(bend)]
        raise ValueError(
            f"`G` must be convex in tau, as the kernel {kernel!r} is. Received: a bend the wrong "
            f"way at tau={where}, by {bend.max():.1f} standard errors. Values may be missing or in "
            "another order, or the errors too small."
        )
    if kernel == "laplace":
        rise = np.diff(correlation) / np.sqrt(np.square(errors[1:]) + np.square(errors[:-1]))
        if rise.max() > _TOLERANCE:
            raise ValueError(
                f"`G` must fall with tau, as the kernel 'laplace' does. Received: a rise at "
                f"tau={times[1:][np.argmax(rise)]}, by {rise.max():.1f} standard errors"
            )


def write(file: str, columns: Mapping[str, Array]) -> None:
    """Writes columns of equal length as `.npz` or `.csv`, to a temporary name first.

    Args:
        file: destination; what does not end in `.npz` is CSV.
        columns: dict from name to `[N]`.
    """
    os.makedirs(os.path.dirname(os.path.abspath(file)), exist_ok=True)
    with files.whole(file) as temporary:
        if file.endswith(".npz"):
            with open(temporary, "wb") as f:
                np.savez(f, **columns)  # type: ignore[arg-type]  # NumPy's stub takes the names for options.
            return
        with open(temporary, "w", encoding="utf-8", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(columns)
            writer.writerows(
                zip(*(map(repr, map(float, x)) for x in columns.values()), strict=True)
            )
