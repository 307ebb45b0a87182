"""A Keras optimizer that runs a learned update rule."""

import contextlib
import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from lopt_keras import (
    break_even,
    keras_private,
    observations,
    options,
    packing,
    pretrained,
    programs,
    rounding,
    rules,
    saved_model,
)
from lopt_keras.rules import base, step
from lopt_keras.rules.base import State, UpdateRule
from lopt_keras.signals import Signal, Signals
from lopt_keras.types import Array, Arrays, Shape, Tensor, Tensors, Theta

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from lopt_keras import tensorflow_private
elif keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax

_TRAINED_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Of a learning rate, below which it is more likely meant for another optimizer.
_SMALL = 0.1
_Schedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("lopt_keras")
class LearnedOptimizer(keras_private.Optimizer):
    """Optimizer whose step is computed by a small, meta-trained network.

    It needs no hyperparameter:

    >>> model.compile(optimizer=LearnedOptimizer(), loss="mse")

    It trains parameters of any rank and float dtype. The arithmetic of the network is
    float32. A step changes nothing but `skipped_steps` if a gradient is not finite, or if
    it is too large (about 1e19): float32 could not hold the sum of its squares.

    A rule may use more than gradients (`rule.signals`):

    - The training loss arrives by itself in `fit` with TensorFlow and torch, except under
      a `LossScaleOptimizer` or `MultiOptimizer`. A custom loop passes it to `observe`.
    - `lopt_keras.callbacks.ValidationLoss` or `observe` passes the validation loss.
    - `lopt_keras.callbacks.Horizon` or `total_steps` passes the planned number of steps.

    A rule uses a neutral value for a signal that is not known. The first step warns if the
    training loss is not known, because it should arrive by itself. Training may continue
    beyond the planned number of steps. The optimizer then warns, and works as if the number
    were not known.

    Steps shrink during training. If the problem changes, as in online and reinforcement
    learning, `reset` makes them as large as at the start again.

    Gradient tapes do not record a step: there are no gradients through it.

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
            Defaults to `1.0`, with which the weights were meta-trained. A number below 0.1
            gives a warning: it is more likely meant for another optimizer.
        total_steps: Planned number of steps, for rules that can use the horizon,
            or `None` if it is not known. An attribute that can be assigned, also
            while training. Defaults to `None`.
        weight_decay: Fraction of each parameter taken away per step, times
            `learning_rate` (mind that it is 1 here, not 0.001). Defaults to `None`.
        use_ema: Whether a running average of the variables is kept beside them, which
            `fit` leaves in the model at its end. Defaults to `rule.averages`: a rule that
            averages also sets the weights of the average, in place of `ema_momentum`.
            `False` switches the average off. A custom loop ends with
            `optimizer.finalize_variable_values(model.trainable_variables)`, and
            `keras.callbacks.SwapEMAWeights(swap_on_epoch=True)` validates with it.
        clipnorm, clipvalue, global_clipnorm: As for every Keras optimizer.
        ema_momentum, ema_overwrite_frequency: As for every Keras optimizer.
        loss_scale_factor, gradient_accumulation_steps: As for every Keras optimizer.
            Gradient accumulation leaves out a micro-batch whose gradient is not finite.
            All options are attributes that can be assigned. An assignment that would have
            no effect, as in a compiled training step, raises an AttributeError.
        jit_compile: Whether XLA compiles the optimizer's step, whatever
            `model.compile` says of the model's (Keras leaves XLA off on machines
            without an accelerator). Only with TensorFlow, outside of
            `tf.distribute`. `False` starts a second or more sooner, and takes up to twice as
            long for each step. `"auto"` leaves XLA out of trainings that are too short
            for it to pay, if `lopt_keras.callbacks.Horizon` says how long they are
            (`choose_compilation`). Defaults to `"auto"`.
        state_dtype: `"float32"`, or `"bfloat16"` to keep the parts of the state
            that are as large as their parameter in half the memory; they are
            rounded stochastically. Defaults to `"float32"`.
        seed: Integer, for `weights=None` and for rounding. Defaults to `0`.
        name: Name of the optimizer. Defaults to `"learned_optimizer"`, with a number
            after the first of them, as for every Keras optimizer.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.

    Reference:
        Metz et al., arXiv 1810.10180 and 2203.11860; see the rule for its formulas.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | Mapping[str, Any] | None = "default",
        rule: UpdateRule | str | dict[str, Any] | None = None,
        learning_rate: Any = 1.0,
        total_steps: int | None = None,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool | None = None,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        jit_compile: bool | str = "auto",
        state_dtype: str = "float32",
        seed: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        of_keras = {
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
            "use_ema": use_ema,
            "ema_momentum": ema_momentum,
            "ema_overwrite_frequency": ema_overwrite_frequency,
            "loss_scale_factor": loss_scale_factor,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "name": name,
        }
        ours = {"total_steps": total_steps, "state_dtype": state_dtype, "jit_compile": jit_compile}
        for argument, value in {**of_keras, **ours, "seed": seed}.items():
            options.check(argument, value)
        if isinstance(learning_rate, int | float | np.number):
            of_keras["learning_rate"] = float(learning_rate)
        rule, theta = _resolve(weights, rule, seed)
        of_keras["use_ema"] = rule.averages if use_ema is None else use_ema
        super().__init__(**of_keras, **kwargs)
        self.rule = rule
        self.seed = seed
        self.jit_compile = jit_compile
        self.state_dtype = state_dtype
        self._theta = theta
        self._theta_tensors: Tensors | None = None
        self._programs = programs.Programs()
        self._traced = False
        # What `choose_compilation` had chosen at the traces that may still run.
        self._traced_uncompiled: set[bool] = set()
        self._heard_train_loss = self._warned = False
        self._warned_of_horizon = total_steps is None
        self._skipped_steps, self._total_steps, self._first_step, self._uncompiled = (
            self.add_variable(shape=(), dtype="int", name=name, aggregation="only_first_replica")
            for name in ("skipped_steps", "total_steps", "first_step", "uncompiled")
        )
        self.total_steps = total_steps
        self._observations = {
            name: observations.Observation(self, name)
            for name in rule.signals
            if name != "total_steps"
        }
        _warn_of_small_learning_rate(learning_rate, self._calls.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in options.CHANGEABLE:
            options.check(name, value)
            if name == "learning_rate" or value != getattr(self, name, value):
                options.check_change(name, value, self.built, self._traced)
        if name == "learning_rate" and not self.built:
            _warn_of_small_learning_rate(value, self._calls.dtype)
        super().__setattr__(name, value)

    @property
    def theta(self) -> Arrays:
        """The meta-parameters: a dict of NumPy arrays (copies)."""
        return {name: value.copy() for name, value in self._theta.items()}

    @property
    def skipped_steps(self) -> int:
        """Number of steps left out because a gradient was not finite, an int."""
        return int(ops.convert_to_numpy(self._skipped_steps))

    @property
    def total_steps(self) -> int | None:
        """The planned number of steps, an int, or `None`."""
        return int(ops.convert_to_numpy(self._total_steps)) or None

    @total_steps.setter
    def total_steps(self, value: int | None) -> None:
        options.check("total_steps", value)
        self._total_steps.assign(value or 0)
        self._warned_of_horizon = value is None

    def choose_compilation(self, shapes: Sequence[Shape], num_steps: int | None) -> bool:
        """Chooses between steps with and without XLA, for a training of known length.

        With `jit_compile="auto"` only. `callbacks.Horizon` calls it at the beginning of `fit`.
        A training of less than `break_even.num_steps(shapes)` steps goes without XLA. Without a
        length, or with a rule that does not step with all tensors at once, XLA is used. The
        choice is saved with the optimizer, and holds until the next one.

        Args:
            shapes: of the trained variables.
            num_steps: of the training to come, or None if it is not known.

        Returns:
            Whether a function that TensorFlow has traced with this optimizer must be traced
            again to obey.
        """
        if self.jit_compile != "auto" or keras.backend.backend() != "tensorflow":
            return False
        uncompiled = False
        if self.rule.fuses_tensors and num_steps is not None:
            uncompiled = num_steps < break_even.num_steps(shapes)
        self._uncompiled.assign(int(uncompiled))
        changes = self._traced_uncompiled - {uncompiled}
        self._traced_uncompiled -= changes
        return bool(changes)

    def reset(self) -> None:
        """Starts the rule again, for a task that has changed.

        Steps shrink during training. Call this if the problem changes (another task,
        another part of a stream, another policy), and steps have a useful size again. The
        rule's state and its losses are then as at the first step, and the rule counts time
        from here. The parameters, their moving averages, the learning rate, `iterations`,
        `skipped_steps` and `total_steps` stay as they are.

        Call it between two steps, outside of compiled functions. A compiled step continues
        with the new state.
        """
        if not self.built:
            return
        state = self._initial_state(self._all_variables)
        pairs = zip(self._state.tensors, state.tensors, strict=True)
        for variables, arrays in [*pairs, (self._state.shared, state.shared)]:
            for name, variable in variables.items():
                variable.assign(ops.cast(arrays[name][0], variable.dtype))
        for observation in self._observations.values():
            observation.forget_where(True)
        # A copy, as JAX would give two variables the same memory.
        self._first_step.assign(ops.copy(ops.cast(self.iterations, self._first_step.dtype)))

    def observe(self, train_loss: Any = None, validation_loss: Any = None) -> None:
        """Passes a loss to the rule, for the next step.

        Several values of one loss between two steps are averaged. A loss that the rule
        does not use, or that is not finite, is ignored. Each replica of `tf.distribute`
        passes the loss of its own part of the batch.

        Args:
            train_loss: scalar, the mean loss whose gradients come next.
            validation_loss: scalar, a mean loss on held-out data.

        Raises:
            ValueError: if neither is given, or one is no scalar.
        """
        given = {"train_loss": train_loss, "validation_loss": validation_loss}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            raise ValueError("`observe` needs `train_loss` or `validation_loss`. Received neither.")
        for name, value in given.items():
            value = ops.convert_to_tensor(value)
            if len(value.shape):
                raise ValueError(f"`{name}` must be a scalar. Received shape: {tuple(value.shape)}")
            if name in self._observations:
                self._heard_train_loss |= name == "train_loss"
                self._observations[name].add(value)

    def scale_loss(self, loss: Any) -> Any:
        """As every Keras optimizer; the trainer passes each training loss through here."""
        # With JAX, what is assigned here is lost: the trainer drops it.
        if "train_loss" in self._observations and keras.backend.backend() != "jax":
            # The trainer has divided the loss by the number of replicas.
            self.observe(train_loss=loss * _num_replicas())
        return super().scale_loss(loss)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state of the rule for each variable."""
        if self.built:
            return
        for variable in variables:
            _check_variable(variable)
        super().build(variables)
        state = self._initial_state(variables)
        if self.use_ema:
            # Keras has zeros, which a user would get who stops before the first step, or swaps.
            with _outside_of_graphs():
                if all(_has_value(variable) for variable in variables):
                    self._overwrite_averages()
        tensors = [
            self._add_state(
                _path(variable).replace("/", "_").replace(":", "_"), tensor, _covers(variable.shape)
            )
            for variable, tensor in zip(variables, state.tensors, strict=True)
        ]
        self._state = base.State(tensors, self._add_state("shared", state.shared, _are_tiles))

    def _overwrite_averages(self) -> None:
        for variable, average in zip(self._all_variables, self._averages, strict=True):
            if average is not None:
                # A copy: JAX refuses to train where two variables have one array.
                average.assign(ops.copy(ops.cast(variable, average.dtype)))

    def _initial_state(self, variables: Sequence[Any]) -> State:
        """As it is kept: of a rule that fuses tensors, with the small arrays packed."""
        with _outside_of_graphs():
            params = [ops.zeros((1, *v.shape), "float32") for v in variables]
            names = [_path(v) for v in variables]
            state = self.rule.init_state(self._theta_particle(), params, names)
            if not self.rule.fuses_tensors:
                return state
            self._packing = packing.Packing.of(state.shared, _are_tiles)
            return State(state.tensors, self._packing.pack(state.shared))

    def _add_state(
        self, prefix: str, arrays: Tensors, is_large: Callable[[Tensor], bool]
    ) -> dict[str, Any]:
        """A variable for each array of `[1, ...]`; what `is_large` has the dtype of the state."""
        variables = {}
        for name, value in arrays.items():
            variables[name] = self.add_variable(
                shape=value.shape[1:],
                initializer=_initializer(ops.convert_to_numpy(value)[0]),
                dtype=self.state_dtype if is_large(value) else "float32",
                name=f"{prefix}_{name}",
            )
        return variables

    def _take_step(self, grads: Sequence[Tensor], variables: Sequence[Any]) -> None:
        """One step for the whole list, in place of Keras's loop over variables."""
        with _no_gradients():
            self._apply_all(grads, variables)

    def _apply_all(self, grads: Sequence[Tensor], trainable_variables: Tensor) -> None:
        if _is_traced(grads):
            self._traced = True
            self._traced_uncompiled.add(self._is_uncompiled())
        self._warn_of_missing_loss()
        if not self._traced:
            self._warn_of_horizon(coming=1)
        sums = [observation.sums() for observation in self._observations.values()]
        if keras.backend.backend() == "tensorflow":
            grads, sums = self._reduced(grads, sums, trainable_variables)
        losses = {
            name: observations.mean(*pair)
            for name, pair in zip(self._observations, sums, strict=True)
        }
        grads = [ops.cast(grad, "float32") for grad in grads]
        usable = _are_usable(grads)
        apply, grads = self._accumulate_gradients(usable, grads, trainable_variables)
        signals = self._signals(losses)
        weight = self._update(apply, self._clipped(grads), trainable_variables, signals)
        self._forget(apply)
        if self.use_ema:
            self._update_averages(usable, weight)
        # The caller advances `iterations` by one, which a step left out must not do.
        skipped = ops.cast(ops.logical_not(usable), self._skipped_steps.dtype)
        self._skipped_steps.assign_add(skipped)
        self._calls.assign_sub(ops.cast(skipped, self._calls.dtype))

    def _reduced(
        self, grads: Sequence[Tensor], sums: Any, variables: Sequence[Any]
    ) -> tuple[list[Tensor], Any]:
        """Gradients and losses, summed over all replicas of `tf.distribute`."""
        if _num_replicas() == 1:
            # Summing would make one operation of all. Grappler would take it apart and lose the
            # order that it gave, so that a loss could be forgotten before it is read.
            return _dense(grads, variables), sums
        pairs = [*zip(grads, variables, strict=True), *((x, None) for pair in sums for x in pair)]
        # All in one call: collective operations without a certain order would mix.
        reduced = self._summed_over_replicas(pairs)
        flat_sums = reduced[len(grads) :]
        grads = _dense(reduced[: len(grads)], variables)
        return grads, list(zip(flat_sums[::2], flat_sums[1::2], strict=True))

    def _warn_of_missing_loss(self) -> None:
        missing = "train_loss" in self.rule.signals and not self._heard_train_loss
        if missing and not self._warned:
            warnings.warn(
                f"The update rule {type(self.rule).__name__} makes use of the training loss, "
                "which has not been heard; it works from a neutral value. A loop of your own calls "
                "`observe`. In `fit` under JAX, and inside a LossScaleOptimizer or a "
                "MultiOptimizer, Keras does not show the loss: nothing can be done there.",
                stacklevel=2,
            )
        self._warned = True

    def _warn_of_horizon(self, coming: int = 0) -> None:
        if self._warned_of_horizon:
            return
        steps = int(ops.convert_to_numpy(self.iterations)) + coming
        if self.total_steps is None or steps <= self.total_steps:
            return
        warnings.warn(
            f"Training goes on beyond `total_steps={self.total_steps}`, as if the number of steps "
            "were not known. Assign a new number, or None, to `optimizer.total_steps`.",
            stacklevel=2,
        )
        self._warned_of_horizon = True

    def finalize_variable_values(self, var_list: Any) -> None:
        """As every Keras optimizer; `fit` calls it at its end.

        Each variable gets its own average. One that the optimizer was not built for stays as it is,
        as one of a layer that was frozen then.

        Args:
            var_list: list of variables, in any order.

        Raises:
            ValueError: if the optimizer was built for none of them.
        """
        if self.use_ema:
            self._keep_averages(list(var_list))
        # A step that is compiled cannot warn.
        self._warn_of_horizon()

    def _keep_averages(self, variables: Sequence[Any]) -> None:
        # Keras pairs variables and averages by their places: after a layer is frozen, a variable
        # would get the average of another.
        known = [variable for variable in variables if self._is_known(variable)]
        if variables and not known:
            raise ValueError(
                "`var_list` must hold variables that the optimizer was built for. Received: "
                f"var_list={[_path(variable) for variable in variables]}"
            )
        averages = [(v, self._averages[self._index_of(v)]) for v in known]
        averaged = [(variable, average) for variable, average in averages if average is not None]
        # Copies: JAX refuses to train where two variables have one array.
        values = [ops.copy(ops.cast(_value(average), v.dtype)) for v, average in averaged]
        self._assign([variable for variable, _ in averaged], values)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """As every Keras optimizer."""
        name = "exclude_from_weight_decay"
        options.check_change(name, var_list or var_names, self.built, self._traced)
        super().exclude_from_weight_decay(var_list, var_names)

    def _forget(self, apply: Tensor) -> None:
        for name, observation in self._observations.items():
            # The training loss of a step that is left out goes with it.
            stale = name == "train_loss" and not self.gradient_accumulation_steps
            observation.forget_where(ops.logical_or(apply, stale))

    def _signals(self, losses: dict[str, Any]) -> Signals:
        """`Signals` of this step, each of shape `[1]`."""
        first = _value(self._first_step)
        step, total = (
            ops.reshape(ops.cast(x, self._first_step.dtype) - first, (1,))
            for x in (self.iterations, self._total_steps)
        )
        # Without a horizon `total_steps` is 0, and after a reset the horizon may have passed.
        horizon = Signal.where(total > 0, ops.cast(total, "float32"))
        return Signals.silent(step, total_steps=horizon, **losses)

    def _update(
        self, apply: Tensor, grads: Sequence[Tensor], variables: Sequence[Any], signals: Signals
    ) -> Tensor | None:
        """Steps with all variables, if `apply` holds.

        Returns:
            The weight of the newest parameters in the averages, 0 if `apply` does not hold;
            None if the rule leaves it to the caller.
        """
        if self.rule.fuses_tensors:
            return self._update_fused(apply, grads, variables, signals)
        theta, shared = self._theta_particle(), _values(self._state.shared)
        indices = [self._index_of(variable) for variable in variables]
        state = [self._state.tensors[i] for i in indices]
        kinds = [_kind(v, tensor) for v, tensor in zip(variables, state, strict=True)]
        learning_rate = ops.cast(self.learning_rate, "float32")
        shrink = [self._shrink(variable, learning_rate) for variable in variables]

        def summarise(i: int) -> tuple[Tensors, Tensors]:
            inputs = _values(state[i]), shared, grads[i], _value(variables[i]), shrink[i]
            return self._run(kinds[i], _summary, theta, *inputs)

        def coordinate(summaries: Sequence[Tensors]) -> tuple[Tensors, Sequence[Tensors]]:
            if not shared:  # Nothing to compute.
                return self.rule.coordinate(theta, shared, summaries, signals)
            return self._run(len(summaries), _coordinated, theta, shared, summaries, signals)

        def update(i: int, new_state: Tensors | None, message: Tensors) -> None:
            how = apply, learning_rate, shrink[i], self._seed(indices[i])
            inputs = new_state or {}, message, grads[i], _value(variables[i]), signals
            param, tensor = self._run(kinds[i], _new_values, theta, how, inputs, _values(state[i]))
            self._assign([variables[i]], [param])
            self._assign_dict(state[i], tensor)

        new, _ = step.take(self.rule, len(variables), summarise, coordinate, update)
        self._assign_dict(
            self._state.shared,
            {name: ops.where(apply, new[name][0], shared[name]) for name in shared},
        )
        return _average_weight(self.rule, base.State(state, new), apply)

    def _update_fused(
        self, apply: Tensor, grads: Sequence[Tensor], variables: Sequence[Any], signals: Signals
    ) -> Tensor | None:
        """As `_update`, by a rule that steps with all tensors at once, in one program."""
        everything = self._all_variables
        given = {self._index_of(v): g for v, g in zip(variables, grads, strict=True)}
        grads = [
            given[i] if i in given else ops.zeros(v.shape, "float32")
            for i, v in enumerate(everything)
        ]
        learning_rate = ops.cast(self.learning_rate, "float32")
        names = tuple(_kind_of_name(_path(v)) for v in everything)
        # Without a weight decay nothing, as each of these would cost an operation.
        decays = self.weight_decay is not None
        params, shared, weight = self._run(
            (decays, *(_kind(v, ()) for v in everything)),
            # Callable, though a tuple.
            _FusedStep(tuple(given), names, self._packing),  # type: ignore[arg-type]
            self._theta_particle(),
            (apply, learning_rate, self._seed(0)),
            grads,
            [_value(v) for v in everything],
            [self._shrink(v, learning_rate) for v in everything] if decays else [],
            _values(self._state.shared),
            signals,
        )
        self._assign([everything[i] for i in given], params)
        self._assign_dict(self._state.shared, shared)
        return weight if self.rule.averages else None

    def _run(self, kind: Hashable, part: Callable[..., Any], *args: Any) -> Any:
        """A part of the rule's step, as an XLA program if so asked.

        Each kind of tensor has a program of its own. A model has far fewer shapes than
        tensors, so this compiles faster than one program for the whole step.
        """
        if not self._compiles():
            return part(self.rule, *args)
        return self._programs.run(kind, part, self.rule, *args)

    def _compiles(self) -> bool:
        """Whether XLA compiles the steps to come."""
        if not self.jit_compile or keras.backend.backend() != "tensorflow":
            return False
        if tf.distribute.has_strategy() or tensorflow_private.watches_operations():
            return False
        return not self._is_uncompiled()

    def _is_uncompiled(self) -> bool:
        """Whether `choose_compilation` has left XLA out."""
        if self.jit_compile != "auto" or keras.backend.backend() != "tensorflow":
            return False
        with tf.init_scope():
            return bool(ops.convert_to_numpy(self._uncompiled))

    def _theta_particle(self) -> Tensors:
        """Theta as one particle."""
        if keras.backend.backend() != "tensorflow":
            return {name: ops.convert_to_tensor(x[None]) for name, x in self._theta.items()}
        if self._theta_tensors is None:
            with tf.init_scope():
                self._theta_tensors = {
                    name: tf.constant(x[None]) for name, x in self._theta.items()
                }
        return self._theta_tensors

    def _shrink(self, variable: Any, learning_rate: Any) -> Tensor:
        """What is left of a variable after its weight decay."""
        if self.weight_decay is None or not self._has_decay(variable):
            return ops.ones_like(learning_rate)
        return 1.0 - self.weight_decay * learning_rate

    def _seed(self, index: int) -> Tensor:
        """Of the rounding of the state of a variable; differs between variables."""
        seed = (self.seed % 2**31 + 1_000_003 * index + 2**31) % 2**32 - 2**31
        return ops.convert_to_tensor(seed, "int32")

    def _accumulate_gradients(
        self, usable: Tensor, grads: Sequence[Tensor], variables: Sequence[Any]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Whether to step now, and with which gradients."""
        steps = self.gradient_accumulation_steps
        if not steps:
            return usable, grads
        complete = ops.equal((self._calls + 1) % steps, 0)
        accumulators = self._accumulators(variables)
        totals = [
            ops.cast(accumulator, "float32") + grad
            for accumulator, grad in zip(accumulators, grads, strict=True)
        ]
        kept = [ops.where(complete, 0.0, total) for total in totals]
        self._assign_where(usable, accumulators, kept)
        return ops.logical_and(usable, complete), [total / steps for total in totals]

    def _update_averages(self, usable: Tensor, weight: Tensor | None) -> None:
        averaged = [
            (variable, average)
            for variable, average in zip(self._all_variables, self._averages, strict=True)
            if average is not None
        ]
        if weight is None:
            weight = ops.where(usable, 1.0 - self.ema_momentum, 0.0)
        # Also if the first step is left out: `build` cannot set the averages of variables that are
        # made while `fit` traces its first step.
        weight = ops.where(ops.equal(self.iterations, 0), 1.0, weight)
        variables, averages = (list(column) for column in zip(*averaged, strict=True))
        self._move_towards(averages, variables, weight)
        if self.ema_overwrite_frequency:
            due = ops.equal((self.iterations + 1) % self.ema_overwrite_frequency, 0)
            self._assign_where(ops.logical_and(usable, due), variables, averages)

    def _move_towards(
        self, variables: Sequence[Any], targets: Sequence[Any], weight: Tensor
    ) -> None:
        """Moves each variable by a fraction of its way to a target."""
        differences, weights = [], []
        for variable, target in zip(variables, targets, strict=True):
            old = _value(variable)
            differences.append(old - ops.cast(target, old.dtype))
            weights.append(ops.cast(weight, old.dtype))
        if keras.backend.backend() == "tensorflow" and not keras_private.any_in_replicas(variables):
            # One operation for three, and memory is read once: a model may have 200 variables.
            for variable, *step in zip(variables, weights, differences, strict=True):
                tensorflow_private.subtract_scaled(variable.value, *step)
            return
        triples = zip(variables, weights, differences, strict=True)
        self._assign(variables, [_value(variable) - w * d for variable, w, d in triples])

    def _assign_where(
        self, condition: Tensor, variables: Sequence[Any], values: Sequence[Tensor]
    ) -> None:
        """Assigns each value to its variable, or the variable to itself."""
        values = [
            ops.where(condition, ops.cast(value, variable.dtype), _value(variable))
            for variable, value in zip(variables, values, strict=True)
        ]
        self._assign(variables, values)

    def _assign_dict(self, variables: dict[str, Any], values: Tensors) -> None:
        self._assign(list(variables.values()), [values[name] for name in variables])

    def _assign(self, variables: Sequence[Any], values: Sequence[Tensor]) -> None:
        if keras.backend.backend() != "tensorflow":
            for variable, value in zip(variables, values, strict=True):
                self.assign(variable, value)
            return

        self._assign_in_replicas(variables, values)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with theta itself in place of its origin."""
        return {
            **super().get_config(),
            "weights": {name: value.tolist() for name, value in self._theta.items()},
            "rule": rules.serialize(self.rule),
            "total_steps": self.total_steps,
            "jit_compile": self.jit_compile,
            "state_dtype": self.state_dtype,
            "seed": self.seed,
        }


class _FusedStep(NamedTuple):
    """A part of a step, for all variables at once.

    Attributes:
        given: indices of the variables that have a gradient.
        names: what a rule has to know of the name of each.
        packing: of the small arrays of the state.
    """

    given: tuple[int, ...]
    names: tuple[str, ...]
    packing: packing.Packing

    def __call__(
        self,
        rule: UpdateRule,
        theta: Theta,
        how: tuple[Tensor, Tensor, Tensor],
        grads: Sequence[Tensor],
        old: Sequence[Tensor],
        shrinks: Sequence[Tensor],
        old_shared: Tensors,
        signals: Signals,
    ) -> tuple[list[Tensor], Tensors, Tensor]:
        """`(params, shared, weight)` after a step, or as they were; pure.

        Of the `given` variables. `shrinks` are what their weight decay leaves of all of them,
        or nothing without one; `weight` is that of the newest parameters in the averages.
        """
        apply, learning_rate, seed = how
        wide = [_widened(param) for param in old]
        if shrinks:
            wide = [_shrunk(param, shrink) for param, shrink in zip(old, shrinks, strict=True)]
        updates, state = rule.update(
            theta,
            base.State([{}] * len(old), self.packing.unpack(_particles(old_shared))),
            [ops.expand_dims(grad, 0) for grad in grads],
            [ops.expand_dims(ops.cast(param, "float32"), 0) for param in wide],
            signals,
            names=list(self.names),
        )
        # Not `where(apply, new, old)`: of a condition that is the same for all entries, LLVM makes
        # two loops, and that for each tensor.
        largest = ops.where(apply, np.finfo("float32").max, -1.0)
        params = []
        for i in self.given:
            step = learning_rate * ops.squeeze(updates[i], 0)
            step = ops.where(ops.abs(step) <= largest, step, 0.0)
            params.append(ops.cast(wide[i] + ops.cast(step, wide[i].dtype), old[i].dtype))
        packed = self.packing.pack(state.shared)
        new = {name: packed[name][0] for name in old_shared}
        weight = _average_weight(rule, state, apply)
        weight = ops.zeros((), "float32") if weight is None else weight
        return params, _kept_state(apply, new, old_shared, seed, signals), weight


def _average_weight(rule: UpdateRule, state: State, apply: Tensor) -> Tensor | None:
    """The weight of the newest parameters in the averages, if the rule says it."""
    if not rule.averages:
        return None
    return ops.where(apply, rule.average_weight(state)[0], 0.0)


def _summary(
    rule: UpdateRule,
    theta: Theta,
    state: Tensors,
    shared: Tensors,
    grad: Tensor,
    param: Tensor,
    shrink: Tensor,
) -> tuple[Tensors, Tensors]:
    """The `[1, ...]` state and summary of one variable; pure."""
    param = ops.cast(_shrunk(param, shrink), "float32")[None]
    return rule.summarise(theta, _particles(state), _particles(shared), grad[None], param)


def _coordinated(
    rule: UpdateRule, theta: Theta, shared: Tensors, summaries: Sequence[Tensors], signals: Signals
) -> tuple[Tensors, Sequence[Tensors]]:
    """The new shared state and the messages to all variables; pure."""
    return rule.coordinate(theta, _particles(shared), summaries, signals)


def _new_values(
    rule: UpdateRule,
    theta: Theta,
    how: tuple[Tensor, Tensor, Tensor, Tensor],
    inputs: tuple[Any, ...],
    old_state: Tensors,
) -> tuple[Tensor, Tensors]:
    """`(param, state)` of one variable after a step, or as they were; pure."""
    apply, learning_rate, shrink, seed = how
    new_state, message, grad, old, signals = inputs
    wide = _shrunk(old, shrink)
    update, state = rule.update_tensor(
        theta,
        # Without a first part of the rule, its state is the old one.
        new_state or _particles(old_state),
        message,
        grad[None],
        ops.cast(wide, "float32")[None],
        signals,
    )
    param = ops.cast(wide + ops.cast(learning_rate * update[0], wide.dtype), old.dtype)
    new = {name: state[name][0] for name in old_state}
    return ops.where(apply, param, old), _kept_state(apply, new, old_state, seed, signals)


def _kept_state(
    apply: Tensor, new: Tensors, old: Tensors, seed: Tensor, signals: Signals
) -> Tensors:
    """A state after a step, rounded to its dtypes, or as it was."""
    # Differs between steps and the parts of a state too.
    seed = seed + 31 * ops.cast(signals.step[0], "int32")
    rounded = {
        name: _rounded(new[name], value, seed + 7_919 * i)
        for i, (name, value) in enumerate(old.items())
    }
    return {name: ops.where(apply, rounded[name], value) for name, value in old.items()}


def _shrunk(param: Tensor, shrink: Tensor) -> Tensor:
    """A parameter after its weight decay, in float32 or wider."""
    wide = _widened(param)
    return wide * ops.cast(shrink, wide.dtype)


def _resolve(weights: Any, rule: Any, seed: int) -> tuple[UpdateRule, Arrays]:
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
    carried, theta, _ = saved_model.read(pretrained.find(weights))
    rule = rule or carried
    return rule, rule.check_theta(theta)


def _are_usable(grads: Sequence[Tensor]) -> Tensor:
    """As `gating.gradients_are_usable`, but quick also where it is not compiled."""
    if keras.backend.backend() == "tensorflow":
        # Uncompiled, a fifth of the time of a product, and half that of a sum of squares.
        squares = [tf.nn.l2_loss(grad) for grad in grads]
    else:
        squares = [ops.sum(ops.square(grad)) for grad in grads]
    return ops.all(ops.isfinite(ops.stack(squares)))


def _dense(grads: Sequence[Tensor], variables: Sequence[Any]) -> list[Tensor]:
    """Gradients as tensors of known shape, also those of embeddings."""
    dense = []
    for grad, variable in zip(grads, variables, strict=True):
        x = tf.convert_to_tensor(grad)
        known = x.shape.is_fully_defined()
        dense.append(x if known else tf.ensure_shape(x, variable.shape))
    return dense


def _num_replicas() -> int:
    if keras.backend.backend() == "tensorflow":
        return tf.distribute.get_strategy().num_replicas_in_sync
    return 1


def _warn_of_small_learning_rate(learning_rate: Any, step_dtype: Tensor) -> None:
    if isinstance(learning_rate, _Schedule):
        # With or without warm-up, the rate is near its highest value at one of these steps.
        steps = [0, *(2**i for i in range(20))]
        with _outside_of_graphs():
            steps = [ops.convert_to_tensor(step, step_dtype) for step in steps]
            learning_rate = max(float(learning_rate(step)) for step in steps)
    if isinstance(learning_rate, int | float | np.number) and 0.0 < learning_rate < _SMALL:
        warnings.warn(
            f"`learning_rate={learning_rate:g}` multiplies the steps of a LearnedOptimizer, which "
            "have the right size at 1.0, the default: it will train that many times more slowly. "
            "Leave it out, unless this is meant.",
            stacklevel=3,
        )


def _check_variable(variable: Any) -> None:
    """Raises unless a rule can train a variable."""
    dtype, shape = keras.backend.standardize_dtype(variable.dtype), tuple(variable.shape)
    if dtype not in _TRAINED_DTYPES:
        raise ValueError(
            f"LearnedOptimizer trains variables of the dtypes {_TRAINED_DTYPES}. Received: "
            f"{_path(variable)!r} of dtype {dtype}. Make it not trainable, or leave it out."
        )
    if None in shape or 0 in shape:
        raise ValueError(
            "LearnedOptimizer trains variables with a fixed shape and at least one entry. "
            f"Received: {_path(variable)!r} of shape {shape}"
        )


def _is_traced(grads: Sequence[Tensor]) -> bool:
    """Whether this step is part of a compiled function, not a step by itself."""
    if keras.backend.backend() == "tensorflow":
        return not tf.executing_eagerly()
    if keras.backend.backend() == "jax":
        return any(isinstance(grad, jax.core.Tracer) for grad in grads)
    return False


def _initializer(array: Array) -> Any:
    """An initializer that TensorFlow can lift out of a function that it traces.

    It captures no tensor, and zeros, however many, are no constant of the graph.
    """
    if not array.any():
        return "zeros"
    return lambda shape, dtype: ops.convert_to_tensor(array, dtype)


def _has_value(variable: Any) -> bool:
    """Whether a variable holds something: TensorFlow fills those of a first trace after it."""
    if keras.backend.backend() != "tensorflow":
        return True
    native = variable.value if isinstance(variable, keras.Variable) else variable
    return bool(native.is_initialized())


def _value(variable: Any) -> Tensor:
    """What a variable holds, as a tensor."""
    return ops.cast(variable, variable.dtype)


def _values(state: dict[str, Any]) -> Tensors:
    """What a dict of variables holds."""
    return {name: _value(variable) for name, variable in state.items()}


def _particles(state: Tensors) -> Tensors:
    """A state as one particle, in float32."""
    return {name: ops.cast(value, "float32")[None] for name, value in state.items()}


def _rounded(value: Any, old: Tensor, seed: Tensor) -> Tensor:
    """A new entry of a state, in the dtype of the old one."""
    if keras.backend.standardize_dtype(old.dtype) == "bfloat16":
        return rounding.to_bfloat16(value, seed)
    return value


def _covers(shape: Shape) -> Callable[[Tensor], bool]:
    """Whether an array of a state is as large as the tensor of that shape, or larger."""
    # An array that is much smaller than the parameter may stay in float32.
    return lambda array: bool(shape) and tuple(array.shape[-len(shape) :]) == tuple(shape)


def _are_tiles(array: Tensor) -> bool:
    """Whether an array of the shared state holds tiles, `[1, N, rows, columns]`."""
    return len(array.shape) == 4


def _kind(variable: Any, state: Any) -> Hashable:
    """What decides which compiled programs serve a variable with such a state."""
    return tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype), tuple(state)


def _kind_of_name(name: str) -> str:
    """What a rule may make of a name. Programs are shared by models with other names."""
    return "embedding" if "embedding" in name.lower() else ""


def _path(variable: Any) -> str:
    return getattr(variable, "path", variable.name)


def _widened(x: Tensor) -> Tensor:
    """In float32, or in its own dtype if that is wider."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")


def _outside_of_graphs() -> contextlib.AbstractContextManager[Any]:
    """A scope in which values are concrete, also while a tf.function is traced."""
    if keras.backend.backend() == "tensorflow":
        return tf.init_scope()
    return contextlib.nullcontext()


def _no_gradients() -> contextlib.AbstractContextManager[Any]:
    """A scope in which no gradient is recorded; with JAX, nothing is anyway."""
    if keras.backend.backend() == "tensorflow":
        return tensorflow_private.stop_recording()
    return torch.no_grad() if keras.backend.backend() == "torch" else contextlib.nullcontext()
