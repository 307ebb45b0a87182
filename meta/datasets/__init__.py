"""Real data through tensorflow-datasets: the bundled sets, and any other."""

# Importing a builder is what makes its name known to `load` and `load_table`.
from meta.datasets.digits import Digits
from meta.datasets.image_dataset import ImageDataset, ImageSplit, load
from meta.datasets.patches import Patches
from meta.datasets.prose import Prose
from meta.datasets.splits import SPLITS
from meta.datasets.table_dataset import TableDataset, TableSplit, load_table
from meta.datasets.tables import BreastCancer, Diabetes, IrisPlants, Wine
from meta.datasets.text_dataset import TextDataset, load_text
