"""Meta-training: tasks, estimators of the meta-gradient, and the outer loop."""

import importlib.util

from export import backend  # First: it imports TensorFlow.

_NEEDED = ("matplotlib", "skimage", "sklearn", "tensorboard", "tensorflow_datasets", "tqdm")

if _missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    # With the name, `python -m` shows it as one line.
    raise ImportError(
        f"Meta-training and evaluation need {', '.join(_missing)}: "
        "pip install 'lopt_keras[meta]', or in a checkout pip install '.[meta]'",
        name=__name__,
    )
