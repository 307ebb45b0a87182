"""The families of tasks, by name."""

from meta.tasks.image_convnet import ImageConvnet
from meta.tasks.image_mlp import ImageMLP
from meta.tasks.linear import LinearRegression, LogisticRegression
from meta.tasks.mislabeled import Mislabeled
from meta.tasks.optimizer_training import OptimizerTraining
from meta.tasks.quadratic import Quadratic
from meta.tasks.synthetic_function import SyntheticFunction
from meta.tasks.table_mlp import TableMLP
from meta.tasks.two_moons import TwoMoons

FAMILIES = {
    family.name: family
    for family in (
        ImageConvnet,
        ImageMLP,
        LinearRegression,
        LogisticRegression,
        Mislabeled,
        OptimizerTraining,
        Quadratic,
        SyntheticFunction,
        TableMLP,
        TwoMoons,
    )
}
"""Every family of tasks, by name."""
