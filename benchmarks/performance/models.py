"""What is trained in these benchmarks: lists of variables, with random gradients."""

import keras
import numpy as np


def mlp():
    """784-512-512-10: 670 k parameters, 6 variables."""
    return [(784, 512), (512,), (512, 512), (512,), (512, 10), (10,)]


def resnet50():
    """25.6 M parameters, 214 variables."""
    model = keras.applications.ResNet50(weights=None)
    return [tuple(variable.shape) for variable in model.trainable_variables]


def mobilenet_v2():
    """3.5 M parameters, 158 variables."""
    model = keras.applications.MobileNetV2(weights=None)
    return [tuple(variable.shape) for variable in model.trainable_variables]


def thirty_shapes():
    """33 k parameters: 30 matrices, no two of one shape."""
    return [(8 + 2 * i, 16 + i) for i in range(30)]


def transformer(layers=12, width=256, vocabulary=8192, context=256):
    """11.6 M parameters, 147 variables: a decoder as in GPT-2, its head tied."""
    layer = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    layer += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *layer * layers, (width,)]


def one_tensor():
    """One matrix of 10 M parameters."""
    return [(3162, 3162)]


def table(width):
    """An embedding of a million rows."""
    return lambda: [(1_000_000, width)]


SHAPES = {
    "mlp": mlp,
    "resnet50": resnet50,
    "transformer": transformer,
    "mobilenet_v2": mobilenet_v2,
    "thirty_shapes": thirty_shapes,
    "one_tensor": one_tensor,
    "table_8": table(8),
    "table_16": table(16),
}


def variables(shapes, seed=0):
    """Variables of these shapes and gradients for them: two lists."""
    rng = np.random.default_rng(seed)
    pairs = [rng.standard_normal((2, *shape), dtype="float32") for shape in shapes]
    parameters = [keras.Variable(0.1 * parameter) for parameter, _ in pairs]
    return parameters, [keras.ops.convert_to_tensor(gradient) for _, gradient in pairs]
