"""Compiled programs, shared by all optimizers of the process.

TensorFlow keeps an executable until the process ends, also when nothing uses it any more
(docs/performance.md). What has been compiled is therefore kept for whoever needs it next.
"""

import collections
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras

from lopt_keras import fusion
from lopt_keras.rules.base import UpdateRule

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

MOST_KEPT = 256
"""Number of programs that are kept for optimizers to come. More live while they are in use."""

_lock = threading.Lock()
_in_use: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
_kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()


class Programs:
    """The XLA programs of one optimizer: those of other optimizers, where they are the same."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Any] = {}

    def run(
        self, kind: Hashable, function: Callable[..., Any], rule: UpdateRule, *args: Any
    ) -> Any:
        """`function(rule, *args)` as an XLA program.

        Args:
            kind: hashable; one for each structure, shapes and dtypes of the arguments, quicker
                to look up than those.
            function: pure, a function of a module: it is part of what a program is found by.
            rule: `UpdateRule`, likewise. One that cannot be hashed shares no programs.
            *args: nests of tensors.
        """
        program = self._programs.get((function, kind))
        if program is None:
            program = self._programs[function, kind] = _shared_program(function, rule, args)
        return program(*args)


def any_compiled() -> bool:
    """Whether this process has compiled a program of an optimizer."""
    return bool(_kept)


def _shared_program(function: Callable[..., Any], rule: UpdateRule, args: Any) -> Any:
    specs = keras.tree.map_structure(_spec, args)
    key = (function, _hashable(rule), keras.config.floatx(), repr(specs))
    with _lock:
        program = _in_use.get(key)
    # Without the lock, as tracing takes long: at worst, two threads do it at once.
    program = program or _traced(function, rule, specs)
    with _lock:
        _in_use[key] = _kept[key] = program
        _kept.move_to_end(key)
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return program


def _traced(function: Callable[..., Any], rule: UpdateRule, specs: Any) -> Any:
    # Elsewhere than where it is first called, whose graph and device are not those of others.
    with tf.init_scope(), tf.device(None), fusion.scope():
        traced = tf.function(lambda *args: function(rule, *args), jit_compile=True, autograph=False)
        # Concrete: TensorFlow would warn of the many functions as of one retraced.
        return traced.get_concrete_function(*specs)


def _spec(x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    return tf.TensorSpec(x.shape, x.dtype)


def _hashable(rule: UpdateRule) -> Hashable:
    try:
        hash(rule)
    except TypeError:
        return id(rule)  # It lives as long as its program, which refers to it.
    return rule
