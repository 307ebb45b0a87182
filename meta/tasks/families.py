"""The families of tasks, by name."""

from meta.tasks.analytic_continuation import AnalyticContinuation
from meta.tasks.autoencoder import ConvAutoencoder, MLPAutoencoder
from meta.tasks.char_rnn import CharRNN
from meta.tasks.flow import MAF, RealNVP
from meta.tasks.image_convnet import ImageConvnet
from meta.tasks.image_mlp import ImageMLP
from meta.tasks.linear import LinearRegression, LogisticRegression
from meta.tasks.mislabeled import Mislabeled
from meta.tasks.mixer import MLPMixer
from meta.tasks.optimizer_training import OptimizerTraining
from meta.tasks.quadratic import Quadratic
from meta.tasks.synthetic_function import SyntheticFunction
from meta.tasks.table_mlp import TableMLP
from meta.tasks.transformer import Transformer
from meta.tasks.two_moons import TwoMoons
from meta.tasks.vae import VAE
from meta.tasks.vision_transformer import VisionTransformer

FAMILIES = {
    family.name: family
    for family in (
        AnalyticContinuation,
        CharRNN,
        ConvAutoencoder,
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
