"""The families of tasks, by name."""

from typing import Any

from meta.tasks.families.analytic_continuation import AnalyticContinuation
from meta.tasks.families.autoencoder import ConvAutoencoder, MLPAutoencoder
from meta.tasks.families.char_rnn import CharRNN
from meta.tasks.families.few_examples import FewExamples
from meta.tasks.families.flow import MAF, RealNVP
from meta.tasks.families.image_convnet import ImageConvnet
from meta.tasks.families.image_mlp import ImageMLP
from meta.tasks.families.linear import LinearRegression, LogisticRegression
from meta.tasks.families.mislabeled import Mislabeled
from meta.tasks.families.mixer import MLPMixer
from meta.tasks.families.optimizer_training import OptimizerTraining
from meta.tasks.families.quadratic import Quadratic
from meta.tasks.families.synthetic_function import SyntheticFunction
from meta.tasks.families.table_mlp import TableMLP
from meta.tasks.families.transformer import Transformer
from meta.tasks.families.two_moons import TwoMoons
from meta.tasks.families.vae import VAE
from meta.tasks.families.vision_transformer import VisionTransformer

FAMILIES: dict[str, Any] = {
    family.name: family
    for family in (
        AnalyticContinuation,
        CharRNN,
        ConvAutoencoder,
        FewExamples,
        ImageConvnet,
        ImageMLP,
        LinearRegression,
        LogisticRegression,
        MAF,
        MLPAutoencoder,
        MLPMixer,
        Mislabeled,
        OptimizerTraining,
        Quadratic,
        RealNVP,
        SyntheticFunction,
        TableMLP,
        Transformer,
        TwoMoons,
        VAE,
        VisionTransformer,
    )
}
"""Every family of tasks, by name."""
