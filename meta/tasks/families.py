"""The families of tasks, by name."""

from meta.tasks.analytic_continuation import AnalyticContinuation
from meta.tasks.char_rnn import CharRNN
from meta.tasks.flow import MAF, RealNVP
from meta.tasks.image_convnet import ImageConvnet
from meta.tasks.image_mlp import ImageMLP
from meta.tasks.quadratic import Quadratic
from meta.tasks.synthetic_function import SyntheticFunction
from meta.tasks.transformer import Transformer

FAMILIES = {
    family.name: family
    for family in (
        AnalyticContinuation,
        CharRNN,
        ImageConvnet,
        ImageMLP,
        MAF,
        Quadratic,
        RealNVP,
        SyntheticFunction,
        Transformer,
    )
}
"""Every family of tasks, by name."""
