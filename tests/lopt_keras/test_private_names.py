"""The private names that this package stands on are still there, and are nowhere else."""

import pathlib
import re

import keras
import pytest

from lopt_keras import LearnedOptimizer, keras_private

ROOT = pathlib.Path(keras_private.__file__).parent
NAMES = {**keras_private.NAMES, **keras_private.TENSORFLOW_NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_keras_still_has_it(name):
    optimizer = keras.optimizers.SGD(use_ema=True, gradient_accumulation_steps=2)
    optimizer.build([keras.Variable([1.0])])
    assert hasattr(optimizer, name)
    source = pathlib.Path(keras_private.__file__).read_text(encoding="utf-8")
    assert f"self.{name}" in source or f"def {name}" in source


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: file.name)
def test_nothing_else_uses_it(file):
    if file.name not in ("keras_private.py", "tensorflow_private.py"):
        source = file.read_text(encoding="utf-8")
        for name in NAMES:
            assert not re.search(rf"\.{name}\b|def {name}\b", source), name
        assert not re.search(r"__internal__|tensorflow\.python|keras\.src", source)


def test_nothing_is_hidden_by_a_name_of_ours():
    """A subclass that overrode one of Keras's own would change what Keras does."""
    own = set(vars(keras_private.Optimizer)) - {"_backend_apply_gradients"}
    keras_names = {name for cls in keras.optimizers.Optimizer.__mro__ for name in vars(cls)}
    # What Python writes into any class; into a class without annotations when they are first read.
    ordinary = {
        "__annotations__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__static_attributes__",
    }
    assert own & keras_names <= ordinary
    assert issubclass(LearnedOptimizer, keras_private.Optimizer)
