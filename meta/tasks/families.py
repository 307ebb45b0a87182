"""The families of tasks, by name."""

from meta.tasks.autoencoder import ConvAutoencoder, MLPAutoencoder
from meta.tasks.image_convnet import ImageConvnet
from meta.tasks.image_mlp import ImageMLP
from meta.tasks.mixer import MLPMixer
from meta.tasks.quadratic import Quadratic
from meta.tasks.synthetic_function import SyntheticFunction
from meta.tasks.vae import VAE
from meta.tasks.vision_transformer import VisionTransformer

FAMILIES = {
    family.name: family
    for family in (
        ConvAutoencoder,
        ImageConvnet,
        ImageMLP,
        MLPAutoencoder,
        MLPMixer,
        Quadratic,
        SyntheticFunction,
        VAE,
        VisionTransformer,
    )
}
"""Every family of tasks, by name."""
