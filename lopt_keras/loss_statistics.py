"""Running statistics of losses, and losses relative to them.

Shapes: `P` particles, `K` decays. The statistics of a loss are a dict of `mean` and
`var`, `[P, K]`, and `count`, `[P, 1]`.
"""

from collections.abc import Sequence

from keras import ops

from lopt_keras import features, gating
from lopt_keras.signals import Signal
from lopt_keras.types import Tensor, Tensors


def init(particles: int, decays: Sequence[float], prefix: str) -> Tensors:
    """The statistics before the first loss: dict of arrays, their names prefixed."""
    return {
        f"{prefix}_mean": ops.zeros((particles, len(decays)), "float32"),
        f"{prefix}_var": ops.zeros((particles, len(decays)), "float32"),
        f"{prefix}_count": ops.zeros((particles, 1), "float32"),
    }


def observe(statistics: Tensors, loss: Signal, decays: Sequence[float], prefix: str) -> Tensors:
    """The statistics after a loss, a `Signal`; where it is not known, they stay as they are.

    `mean <- b mean + (1 - b) loss`, `var <- b var + (1 - b) (mean - loss)^2`.

    Source: Metz et al., arXiv 2009.11243, the published implementation.
    """
    heard, loss = loss.known, loss.value[:, None]
    decays = features.constant([decays])
    mean = features.accumulate(statistics[f"{prefix}_mean"], loss, decays)
    var = features.accumulate(statistics[f"{prefix}_var"], ops.square(mean - loss), decays)
    new = {
        f"{prefix}_mean": mean,
        f"{prefix}_var": var,
        f"{prefix}_count": statistics[f"{prefix}_count"] + 1.0,
    }
    return {name: gating.select(heard, x, statistics[name]) for name, x in new.items()}


def corrected_mean(statistics: Tensors, decays: Sequence[float], prefix: str) -> Tensor:
    """The mean without the bias of its start at zero, `[P, K]`; zero before any loss."""
    return statistics[f"{prefix}_mean"] * _correction(statistics, decays, prefix)


def corrected_deviation(statistics: Tensors, decays: Sequence[float], prefix: str) -> Tensor:
    """The square root of the variance without that bias, `[P, K]`; 1e-15 before any loss."""
    # Not exactly zero, where the square root has no derivative.
    return ops.sqrt(statistics[f"{prefix}_var"] * _correction(statistics, decays, prefix) + 1e-30)


def normalise(statistics: Tensors, loss: Tensor, decays: Sequence[float], prefix: str) -> Tensor:
    """`clip((loss - mean) / sqrt(var + 1e-8), -5, 5)`, `[P, K]`, from `[P, K]` or `[P, 1]`."""
    correction = _correction(statistics, decays, prefix)
    mean = statistics[f"{prefix}_mean"] * correction
    scale = ops.rsqrt(statistics[f"{prefix}_var"] * correction + 1e-8)
    return ops.clip((loss - mean) * scale, -5.0, 5.0)


def is_known(statistics: Tensors, prefix: str) -> Tensor:
    """Whether a loss has been observed yet, `[P, 1]` booleans."""
    return statistics[f"{prefix}_count"] > 0


def _correction(statistics: Tensors, decays: Sequence[float], prefix: str) -> Tensor:
    """`1 / (1 - b^n)` after n losses, and 0 before the first, `[P, K]`."""
    count = statistics[f"{prefix}_count"]
    correction = 1.0 / (1.0 - ops.power(features.constant([decays]), ops.maximum(count, 1.0)))
    return ops.where(count > 0, correction, 0.0)
