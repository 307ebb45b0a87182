"""The families of tasks, by name."""

from meta.tasks.autoencoder import ConvAutoencoder, MLPAutoencoder
from meta.tasks.image_convnet import ImageConvnet
from meta.tasks.image_mlp import ImageMLP
from meta.tasks.quadratic import Quadratic
from meta.tasks.synthetic_function import SyntheticFunction
from meta.tasks.vae import VAE

FAMILIES = {
    family.name: family
    for family in (
        ConvAutoencoder,
        ImageConvnet,
        ImageMLP,
        MLPAutoencoder,
        Quadratic,
        SyntheticFunction,
        VAE,
    )
}
"""Every family of tasks, by name."""
