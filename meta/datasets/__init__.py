"""Real data through tensorflow-datasets: the bundled sets, one a file, and any other."""

# Importing a builder is what makes its name known to `load`.
from meta.datasets.digits import Digits
from meta.datasets.image_dataset import SPLITS, ImageDataset, ImageSplit, load
from meta.datasets.patches import Patches
from meta.datasets.prose import Prose
from meta.datasets.text_dataset import TextDataset, load_text
