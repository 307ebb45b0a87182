"""A Keras optimizer that runs a learned update rule."""

import contextlib
import functools
import os

import keras
import numpy as np
from keras import ops

from lopt_keras import features, pretrained, rules, saved_model
from lopt_keras.rules import base

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@keras.saving.register_keras_serializable("lopt_keras")
class LearnedOptimizer(keras.optimizers.Optimizer):
    """Optimizer whose step is computed by a small, meta-trained network.

    It needs no hyperparameter:

    >>> model.compile(optimizer=LearnedOptimizer(), loss="mse")

    Parameters of any rank and float dtype are trained; state and network
    arithmetic are float32. A step in which a gradient is not finite, or too
    large for its square to be summed in float32 (about 1e19), changes nothing
    but `skipped_steps`.

    Args:
        weights: The meta-parameters theta. One of:
            - String: a name in `lopt_keras.list_pretrained()`. Defaults to
              `"default"`.
            - Path of an exported SavedModel; its variables and JSON metadata
              are read, its graph is not.
            - Dict from name to array; needs `rule`.
            - `None`: random, as meta-training starts from, from `seed`.
        rule: `lopt_keras.rules.UpdateRule` or its name. Defaults to the rule
            that the weights carry, and to `FactoredMLP` for random ones.
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`
            or a callable without arguments. Multiplies the learned step.
            Defaults to `1.0`, what the weights were meta-trained with.
        total_steps: Planned number of steps, for rules that can use the horizon,
            or `None` if it is not known. Defaults to `None`.
        weight_decay: Share of each parameter taken away per step, times
            `learning_rate` (mind that it is 1 here, not 0.001). Defaults to `None`.
        clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
        ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps:
            As for every Keras optimizer. A gradient accumulation that meets a
            gradient that is not finite leaves that micro-batch out.
        jit_compile: Whether XLA compiles the optimizer's step, whatever
            `model.compile` says of the model's (Keras leaves XLA off on machines
            without an accelerator). Only with TensorFlow, outside of
            `tf.distribute`. Defaults to `True`.
        seed: Integer, for `weights=None`. Defaults to `0`.
        name: Name of the optimizer. Defaults to `"learned_optimizer"`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Metz et al., arXiv 1810.10180 and 2203.11860; see the rule for its formulas.
    """

    def __init__(
        self,
        weights="default",
        rule=None,
        learning_rate=1.0,
        total_steps=None,
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        jit_compile=True,
        seed=0,
        name="learned_optimizer",
        **kwargs,
    ):
        if isinstance(learning_rate, int | float | np.number):
            base.check_number("learning_rate", learning_rate)
            learning_rate = float(learning_rate)
        for argument, value in (
            ("weight_decay", weight_decay),
            ("clipnorm", clipnorm),
            ("clipvalue", clipvalue),
            ("global_clipnorm", global_clipnorm),
        ):
            if value is not None:
                base.check_number(argument, value)
        if total_steps is not None:
            base.check_integer("total_steps", total_steps, low=1)
        if not isinstance(jit_compile, bool):
            raise TypeError(f"`jit_compile` must be a bool. Received: jit_compile={jit_compile!r}")
        base.check_integer("seed", seed, low=0)
        rule, theta = _resolve(weights, rule, seed)
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
        self.rule = rule
        self.total_steps = total_steps
        self.seed = seed
        self.jit_compile = jit_compile
        self._theta = theta
        self._programs = {}
        self._skipped_steps = self.add_variable(
            shape=(), dtype="int", name="skipped_steps", aggregation="only_first_replica"
        )

    @property
    def theta(self):
        """The meta-parameters: a dict of NumPy arrays (copies)."""
        return {name: value.copy() for name, value in self._theta.items()}

    @property
    def skipped_steps(self):
        """Number of steps left out because a gradient was not finite, an int."""
        return int(ops.convert_to_numpy(self._skipped_steps))

    def build(self, variables):
        """Creates the state of the rule for each variable, in float32."""
        if self.built:
            return
        super().build(variables)
        with _outside_of_graphs():
            theta = {name: ops.convert_to_tensor(v[None]) for name, v in self._theta.items()}
            params = [ops.zeros((1, *v.shape), "float32") for v in variables]
            state = self.rule.init_state(theta, params)
        self._state = [
            self._add_state(variable, tensor_state)
            for variable, tensor_state in zip(variables, state, strict=True)
        ]

    def _add_state(self, variable, tensor_state):
        path = getattr(variable, "path", variable.name).replace("/", "_").replace(":", "_")
        return {
            name: self.add_variable(
                shape=value.shape[1:],
                initializer=_initializer(ops.convert_to_numpy(value)[0]),
                dtype="float32",
                name=f"{path}_{name}",
            )
            for name, value in tensor_state.items()
        }

    def _backend_apply_gradients(self, grads, trainable_variables):
        """Replaces Keras's loop over variables by one step for the whole list."""
        if keras.backend.backend() == "tensorflow":
            pairs = self._all_reduce_sum_gradients(zip(grads, trainable_variables, strict=True))
            # Makes the gradients of embeddings dense.
            grads = [tf.ensure_shape(grad, variable.shape) for grad, variable in pairs]
        grads = [ops.cast(grad, "float32") for grad in grads]
        usable = self._are_usable(grads)
        apply, grads = self._accumulate_gradients(usable, grads, trainable_variables)
        self._update(apply, self._clip_gradients(grads), trainable_variables)
        if self.use_ema:
            self._update_averages(usable)
        # The caller advances `iterations` by one, which a step left out must not do.
        skipped = ops.cast(ops.logical_not(usable), self._skipped_steps.dtype)
        self._skipped_steps.assign_add(skipped)
        self._iterations.assign_sub(ops.cast(skipped, self._iterations.dtype))

    def _are_usable(self, grads):
        def is_usable(grad):
            return features.gradients_are_usable([grad[None]])[0]

        return ops.all(
            ops.stack([self._compiled(is_usable, tuple(grad.shape))(grad) for grad in grads])
        )

    def _update(self, apply, grads, variables):
        """Steps with all variables, if `apply` holds."""
        learning_rate = ops.cast(self.learning_rate, "float32")
        step = _value(self.iterations)
        indices = range(len(variables))
        groups = [indices] if self.rule.mixes_tensors else [[i] for i in indices]
        for group in groups:
            members = [variables[i] for i in group]
            state = [self._state[self._get_variable_index(v)] for v in members]
            decay = tuple(self._decays(v) for v in members)
            kinds = tuple((tuple(v.shape), str(v.dtype)) for v in members)
            program = self._compiled(functools.partial(self._new_values, decay), kinds, decay)
            params, new_state = program(
                apply,
                learning_rate,
                step,
                [grads[i] for i in group],
                [_value(v) for v in members],
                [{name: _value(v) for name, v in s.items()} for s in state],
            )
            self._assign(members, params)
            for old, new in zip(state, new_state, strict=True):
                self._assign(old.values(), [new[name] for name in old])

    def _new_values(self, decay, apply, learning_rate, step, grads, params, state):
        """`(params, state)` after a step, or as they were unless `apply`; pure."""
        wide = [_widened(param) for param in params]
        if any(decay):
            kept = 1.0 - self.weight_decay * learning_rate
            wide = [
                x * ops.cast(kept, x.dtype) if decays else x
                for x, decays in zip(wide, decay, strict=True)
            ]
        updates, new_state = self.rule.update(
            {name: ops.convert_to_tensor(value[None]) for name, value in self._theta.items()},
            [{k: v[None] for k, v in s.items()} for s in state],
            [grad[None] for grad in grads],
            [ops.cast(x, "float32")[None] for x in wide],
            base.Signals(ops.reshape(step, (1,)), self.total_steps),
        )
        new_params = [
            ops.where(apply, ops.cast(x + ops.cast(learning_rate * u[0], x.dtype), old.dtype), old)
            for x, u, old in zip(wide, updates, params, strict=True)
        ]
        new_state = [
            {name: ops.where(apply, new[name][0], old[name]) for name in old}
            for new, old in zip(new_state, state, strict=True)
        ]
        return new_params, new_state

    def _compiled(self, function, *key):
        """`function` as an XLA program, one for each key.

        A program for each kind of tensor, not one for the whole step: a model has far
        fewer shapes than tensors, and compilation takes long.
        """
        if not self.jit_compile or keras.backend.backend() != "tensorflow":
            return function
        if tf.distribute.has_strategy():
            return function
        if key not in self._programs:
            self._programs[key] = tf.function(function, jit_compile=True, autograph=False)
        return self._programs[key]

    def _decays(self, variable):
        return self.weight_decay is not None and self._use_weight_decay(variable)

    def _accumulate_gradients(self, usable, grads, variables):
        """Whether to step now, and with which gradients."""
        steps = self.gradient_accumulation_steps
        if not steps:
            return usable, grads
        complete = ops.equal((self._iterations + 1) % steps, 0)
        accumulators = [self._accumulated_gradients[self._get_variable_index(v)] for v in variables]
        totals = [
            ops.cast(accumulator, "float32") + grad
            for accumulator, grad in zip(accumulators, grads, strict=True)
        ]
        kept = [ops.where(complete, 0.0, total) for total in totals]
        self._assign_where(usable, accumulators, kept)
        return ops.logical_and(usable, complete), [total / steps for total in totals]

    def _update_averages(self, usable):
        averaged = [
            (variable, average)
            for variable, average in zip(
                self._trainable_variables, self._model_variables_moving_average, strict=True
            )
            if average is not None
        ]
        variables, averages = (list(column) for column in zip(*averaged, strict=True))
        momentum = ops.where(ops.equal(self.iterations, 0), 0.0, self.ema_momentum)
        values = []
        for variable, average in averaged:
            weight = ops.cast(momentum, average.dtype)
            values.append(weight * average + (1 - weight) * ops.cast(variable, average.dtype))
        self._assign_where(usable, averages, values)
        if self.ema_overwrite_frequency:
            due = ops.equal((self.iterations + 1) % self.ema_overwrite_frequency, 0)
            self._assign_where(ops.logical_and(usable, due), variables, averages)

    def _assign_where(self, condition, variables, values):
        """Assigns each value to its variable, or the variable to itself."""
        values = [
            ops.where(condition, ops.cast(value, variable.dtype), variable)
            for variable, value in zip(variables, values, strict=True)
        ]
        self._assign(variables, values)

    def _assign(self, variables, values):
        variables = list(variables)
        if keras.backend.backend() != "tensorflow":
            for variable, value in zip(variables, values, strict=True):
                self.assign(variable, value)
            return

        def assign(strategy, values):
            for variable, value in zip(variables, values, strict=True):
                native = variable.value if isinstance(variable, keras.Variable) else variable
                strategy.extended.update(native, self.assign, args=(value,), group=False)

        tf.__internal__.distribute.interim.maybe_merge_call(
            assign, self._distribution_strategy, values
        )

    def get_config(self):
        """The constructor's arguments, with theta itself in place of its origin."""
        return {
            **super().get_config(),
            "weights": {name: value.tolist() for name, value in self._theta.items()},
            "rule": rules.serialize(self.rule),
            "total_steps": self.total_steps,
            "jit_compile": self.jit_compile,
            "seed": self.seed,
        }


def _resolve(weights, rule, seed):
    """`(rule, theta)` from the constructor's `weights`, `rule` and `seed`."""
    rule = None if rule is None else rules.get(rule)
    if weights is None:
        rule = rule or rules.FactoredMLP()
        return rule, rule.check_theta(rule.init_theta(seed))
    if isinstance(weights, dict):
        if rule is None:
            raise ValueError(
                "`rule` must be given with `weights` as a dict of arrays: "
                f"an UpdateRule or one of {rules.NAMES}. Received: rule=None"
            )
        return rule, rule.check_theta(weights)
    if not isinstance(weights, str | os.PathLike):
        raise TypeError(
            "`weights` must be the name of shipped weights, the path of an exported SavedModel, "
            f"a dict of arrays or None. Received: weights={weights!r} of type {type(weights)}"
        )
    known = pretrained.list_pretrained()
    if weights not in known and not os.path.isdir(weights):
        raise ValueError(
            f"`weights` must be one of the shipped {known} or the path of an exported SavedModel. "
            f"Received: weights={os.fspath(weights)!r}, which is neither"
        )
    path = pretrained.path(weights) if weights in known else weights
    carried, theta, _ = saved_model.read(path)
    rule = rule or carried
    return rule, rule.check_theta(theta)


def _initializer(array):
    """An initializer that TensorFlow can lift out of a function that it traces.

    It captures no tensor, and zeros, however many, are no constant of the graph.
    """
    if not array.any():
        return "zeros"
    return lambda shape, dtype: ops.convert_to_tensor(array, dtype)


def _value(variable):
    """What a variable holds, as a tensor."""
    return ops.cast(variable, variable.dtype)


def _widened(x):
    """In float32, or in its own dtype if that is wider."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")


def _outside_of_graphs():
    """A scope in which values are concrete, also while a tf.function is traced."""
    if keras.backend.backend() == "tensorflow":
        return tf.init_scope()
    return contextlib.nullcontext()
