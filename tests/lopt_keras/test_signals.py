"""What the optimizer hears, and what it tells the rule."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from lopt_keras import LearnedOptimizer, callbacks, rules

X = np.random.RandomState(0).standard_normal((64, 6)).astype("float32")
Y = X[:, :1] * 2 - X[:, 1:2]


@keras.saving.register_keras_serializable("test_signals")
class Listener(rules.SGD):
    """SGD that keeps what it hears, -1 for what is not known."""

    signals = ("train_loss", "validation_loss", "total_steps")

    def init_shared_state(self, theta):
        return {name: keras.ops.zeros((1,)) for name in self.signals}

    def coordinate(self, theta, shared, summaries, signals):
        heard = {name: getattr(signals, name) for name in self.signals}
        heard = {k: keras.ops.where(x.known, x.value, -1.0) for k, x in heard.items()}
        return heard, [{}] * len(summaries)


def make_optimizer(**kwargs):
    rule = Listener(learning_rate=1e-3)
    return LearnedOptimizer(weights=rule.init_theta(), rule=rule, jit_compile=False, **kwargs)


def make_model(optimizer, **kwargs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse", **{"jit_compile": False, **kwargs})
    return model


def heard(optimizer):
    """What the rule heard in the last step."""
    return {name: v.numpy().item() for name, v in optimizer._state.shared.items()}


def step(optimizer, variable, gradient=1.0):
    optimizer.apply([tf.constant([gradient])], [variable])


@pytest.fixture
def optimizer():
    return make_optimizer()


@pytest.mark.parametrize("how", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_the_training_loss_arrives_by_itself_under_fit(how):
    optimizer = make_optimizer(total_steps=9)
    model = make_model(optimizer, **how)
    expected = model.evaluate(X, Y, batch_size=64, verbose=0)
    model.fit(X, Y, batch_size=64, verbose=0)
    assert heard(optimizer) == {
        "train_loss": pytest.approx(expected, rel=1e-5),
        "validation_loss": -1.0,
        "total_steps": 9.0,
    }


def test_the_training_loss_of_a_step_is_forgotten_after_it(optimizer):
    variable = keras.Variable([1.0])
    optimizer.observe(train_loss=0.5)
    step(optimizer, variable)
    assert heard(optimizer)["train_loss"] == 0.5
    step(optimizer, variable)
    assert heard(optimizer)["train_loss"] == -1.0


def test_losses_between_two_steps_are_averaged(optimizer):
    for loss in (1.0, 3.0, np.nan, np.inf):
        optimizer.observe(train_loss=loss, validation_loss=2 * loss)
    step(optimizer, keras.Variable([1.0]))
    assert heard(optimizer)["train_loss"] == 2.0
    assert heard(optimizer)["validation_loss"] == 4.0


def test_observe_in_a_tf_function(optimizer):
    variable = keras.Variable([1.0])

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable.value**2)
            optimizer.observe(train_loss=loss)
        optimizer.apply(tape.gradient(loss, [variable.value]), [variable])

    train()
    assert heard(optimizer)["train_loss"] == 1.0


def test_micro_batches_are_averaged():
    optimizer = make_optimizer(gradient_accumulation_steps=2, total_steps=1)
    variable = keras.Variable([1.0])
    for loss in (1.0, 2.0):
        optimizer.observe(train_loss=loss)
        step(optimizer, variable)
    assert heard(optimizer)["train_loss"] == 1.5


def test_a_step_that_is_left_out_takes_its_training_loss_along(optimizer):
    variable = keras.Variable([1.0])
    step(optimizer, variable)
    optimizer.observe(train_loss=7.0, validation_loss=5.0)
    step(optimizer, variable, np.nan)
    assert heard(optimizer) == {"train_loss": -1.0, "validation_loss": -1.0, "total_steps": -1.0}
    step(optimizer, variable)
    assert heard(optimizer) == {"train_loss": -1.0, "validation_loss": 5.0, "total_steps": -1.0}


def test_a_missing_training_loss_is_warned_of_once():
    optimizer, variable = make_optimizer(), keras.Variable([1.0])
    with pytest.warns(UserWarning, match="Listener .*training loss"):
        step(optimizer, variable)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(optimizer, variable)


@pytest.mark.parametrize("told", [[], [callbacks.Horizon(), callbacks.ValidationLoss()]], ids=len)
def test_no_warning_under_fit(told):
    optimizer = make_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_model(optimizer).fit(X, Y, validation_split=0.25, verbose=0, callbacks=told)


def test_observe_checks_what_it_is_given(optimizer):
    with pytest.raises(ValueError, match="Received neither"):
        optimizer.observe()
    with pytest.raises(ValueError, match=r"`train_loss` must be a scalar.*\(2,\)"):
        optimizer.observe(train_loss=[1.0, 2.0])


def test_a_rule_that_hears_nothing_has_no_state_for_it():
    rule = rules.SGD()
    optimizer = LearnedOptimizer(weights=rule.init_theta(), rule=rule)
    optimizer.observe(train_loss=1.0)
    assert [v.name for v in optimizer.variables] == [
        "iteration",
        "learning_rate",
        "skipped_steps",
        "total_steps",
        "first_step",
        "uncompiled",
    ]


def test_total_steps_can_be_assigned_while_training():
    optimizer, variable = make_optimizer(total_steps=5), keras.Variable([1.0])
    compiled = tf.function(lambda: step(optimizer, variable))
    optimizer.build([variable])
    compiled()
    assert heard(optimizer)["total_steps"] == 5.0
    optimizer.total_steps = 7
    compiled()
    assert heard(optimizer)["total_steps"] == 7.0
    assert optimizer.get_config()["total_steps"] == 7
    optimizer.total_steps = None
    assert optimizer.total_steps is None
    with pytest.raises(ValueError, match="`total_steps`.*-1"):
        optimizer.total_steps = -1


def test_under_a_loss_scale_optimizer_the_rule_is_warned_of_the_training_loss():
    optimizer = make_optimizer()
    model = make_model(keras.optimizers.LossScaleOptimizer(optimizer))
    told = [callbacks.Horizon(), callbacks.ValidationLoss()]
    with pytest.warns(UserWarning, match="training loss"):
        model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=told)
    assert heard(optimizer)["total_steps"] == 2


# Several devices.


def test_replicas_tell_the_mean_loss(mirrored_strategy):
    with mirrored_strategy.scope():
        optimizer = make_optimizer(total_steps=1)
        model = make_model(optimizer)
    expected = model.evaluate(X, Y, batch_size=64, verbose=0)
    model.fit(
        X, Y, batch_size=64, validation_data=(X, 2 * Y), epochs=2, verbose=0, shuffle=False,
        callbacks=[callbacks.ValidationLoss()],
    )  # fmt: skip
    assert heard(optimizer)["validation_loss"] > 0
    single = make_model(make_optimizer(total_steps=1))
    single.fit(
        X, Y, batch_size=64, validation_data=(X, 2 * Y), epochs=2, verbose=0, shuffle=False,
        callbacks=[callbacks.ValidationLoss()],
    )  # fmt: skip
    assert heard(optimizer) == pytest.approx(heard(single.optimizer), rel=1e-4)
    assert heard(optimizer)["train_loss"] < expected


# Callbacks.


def recorded(seen, read, when="on_train_batch_begin"):
    """A callback that keeps what `read` gives at the beginning of each batch."""
    return keras.callbacks.LambdaCallback(**{when: lambda index, logs: seen.append(read())})


@pytest.mark.parametrize("how", [{}, {"accumulation": 2}, {"steps_per_execution": 8}], ids=str)
def test_the_horizon_is_that_of_fit(how):
    accumulation = how.get("accumulation")
    optimizer = make_optimizer(gradient_accumulation_steps=accumulation)
    model = make_model(optimizer, steps_per_execution=how.get("steps_per_execution", 1))
    seen = []
    told = [callbacks.Horizon(), recorded(seen, lambda: optimizer.total_steps)]
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0, callbacks=told)
    steps = 4 * 3 // (accumulation or 1)
    assert set(seen) == {steps}
    assert optimizer.total_steps is None
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=told)
    assert seen[-1] == steps + 4 // (accumulation or 1)


def test_the_horizon_gives_way_to_what_was_told_before():
    optimizer = make_optimizer(total_steps=6)
    model = make_model(optimizer)
    expected = [6, None]
    for total_steps in expected:
        model.fit(X, Y, batch_size=16, verbose=0, callbacks=[callbacks.Horizon()])
        assert optimizer.total_steps == total_steps


def default_model(**kwargs):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(LearnedOptimizer(**kwargs), loss="mse", jit_compile=False)
    return model


def goes_on(model):
    """Whether the loss falls by as much as it should in 40 more steps."""
    losses = model.fit(X, Y, batch_size=16, epochs=10, verbose=0).history["loss"]
    return losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("saved", [False, True])
def test_the_loss_falls_in_a_second_fit_as_in_the_first(saved, tmp_path):
    model = default_model()
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[callbacks.Horizon()])
    if saved:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    assert goes_on(model)


@pytest.mark.parametrize("saved", [False, True])
def test_training_goes_on_beyond_the_horizon_with_a_warning(saved, tmp_path):
    model = default_model(total_steps=8)
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    if saved:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="beyond `total_steps=8`"):
        assert goes_on(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(X, Y, verbose=0)


def test_beyond_the_horizon_is_warned_of_at_once_in_a_loop():
    optimizer, variable = make_optimizer(total_steps=2), keras.Variable([1.0])
    for _ in range(2):
        step(optimizer, variable)
    assert heard(optimizer)["total_steps"] == 2.0
    with pytest.warns(UserWarning, match="beyond `total_steps=2`"):
        step(optimizer, variable)
    assert heard(optimizer)["total_steps"] == -1.0
    optimizer.total_steps = 5
    step(optimizer, variable)
    assert heard(optimizer)["total_steps"] == 5.0


def test_the_horizon_of_a_generator_is_known_from_the_second_epoch():
    def batches():
        for i in range(0, 64, 16):
            yield X[i : i + 16], Y[i : i + 16]

    signature = (tf.TensorSpec([None, 6]), tf.TensorSpec([None, 1]))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    optimizer = make_optimizer()
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(optimizer.total_steps)
    )
    make_model(optimizer).fit(data, epochs=3, verbose=0, callbacks=[callbacks.Horizon(), record])
    assert seen == [None, 12, 12]


def test_the_validation_loss_of_each_epoch():
    optimizer = make_optimizer()
    history = make_model(optimizer).fit(
        X,
        Y,
        batch_size=64,
        validation_data=(X, 2 * Y),
        epochs=2,
        verbose=0,
        callbacks=[callbacks.ValidationLoss()],
    )
    assert heard(optimizer)["validation_loss"] == pytest.approx(history.history["val_loss"][0])


class Batches(keras.utils.PyDataset):
    """Two batches, of 48 rows and 16."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(48 * index, 48 * (index + 1))
        return X[rows], 2 * Y[rows]


def generator():
    for _ in range(9):
        for index in range(2):
            yield Batches()[index]


def dict_model(optimizer):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    model = keras.Model({"x": x}, {"out": keras.layers.Dense(1, name="out")(x)})
    model.compile(optimizer, loss={"out": "mse"}, jit_compile=False)
    return model


def as_dicts(x, y):
    return {"x": x}, {"out": y}


def validation_losses(data, model=make_model, convert=lambda x, y: (x, y), weights=None, **how):
    """What the rule has heard after each of 8 batches, and what it should."""
    optimizer = make_optimizer(learning_rate=0.0)
    model, seen = model(optimizer), []
    told = callbacks.ValidationLoss(data=data, every=2, batch_size=48)
    record = recorded(seen, lambda: heard(optimizer)["validation_loss"], "on_train_batch_end")
    model.fit(*convert(X, Y), batch_size=8, verbose=0, callbacks=[record, told])

    def expected(rows):
        weight = None if weights is None else weights[rows]
        x, y = convert(X[rows], 2 * Y[rows])
        return model.evaluate(x, y, batch_size=48, sample_weight=weight, verbose=0)

    first, second = expected(slice(48)), expected(slice(48, 64))
    return seen, pytest.approx([-1, -1, first, -1, second, -1, first, -1], rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (X, 2 * Y),
        lambda: [X, 2 * Y],
        lambda: ([X], [2 * Y]),
        lambda: tf.data.Dataset.from_tensor_slices((X, 2 * Y)).batch(48),
        Batches,
        generator,
    ],
    ids=["tuple", "list", "lists", "tf.data", "PyDataset", "generator"],
)
def test_the_validation_loss_of_every_n_batches_in_turn(make):
    seen, expected = validation_losses(make())
    assert seen == expected


def test_validation_data_by_name_and_with_weights():
    seen, expected = validation_losses(as_dicts(X, 2 * Y), dict_model, as_dicts)
    assert seen == expected
    weights = np.linspace(0.0, 1.0, 64, dtype="float32")
    seen, expected = validation_losses((X, 2 * Y, weights), weights=weights)
    assert seen == expected


def test_validation_data_that_end_are_warned_of():
    one = (batch for batch in [(X, Y)])
    told = callbacks.ValidationLoss(data=one, every=2)
    with pytest.warns(UserWarning, match="have come to their end"):
        make_model(make_optimizer()).fit(X, Y, batch_size=8, verbose=0, callbacks=[told])


@pytest.mark.parametrize("steps_per_execution", [1, 8])
def test_batches_are_counted_not_executions(steps_per_execution, monkeypatch):
    told = []
    monkeypatch.setattr(LearnedOptimizer, "observe", lambda self, **losses: told.extend(losses))
    model = make_model(make_optimizer(), steps_per_execution=steps_per_execution)
    validation = callbacks.ValidationLoss(data=(X, Y), every=8)
    model.fit(X, Y, batch_size=1, epochs=2, verbose=0, callbacks=[validation])
    assert told.count("validation_loss") == 16


def test_callbacks_check_what_they_are_given():
    for make, error, text in [
        (lambda: callbacks.ValidationLoss(data=3), ValueError, "`data`.*3"),
        (lambda: callbacks.ValidationLoss(data=X), ValueError, "`data`.*tuple.*ndarray"),
        (lambda: callbacks.ValidationLoss(data=(X, Y[:3])), ValueError, "(?s)`data`.*64.*3"),
        (lambda: callbacks.ValidationLoss(data=(X[:0], Y[:0])), ValueError, "`data`.*none"),
        (lambda: callbacks.ValidationLoss(every=0), ValueError, "`every`.*0"),
        (lambda: callbacks.ValidationLoss(batch_size=0), ValueError, "`batch_size`.*0"),
    ]:
        with pytest.raises(error, match=text):
            make()
    with pytest.raises(TypeError, match="Horizon needs a model .* LearnedOptimizer.*Adam"):
        make_model("adam").fit(X, Y, verbose=0, callbacks=[callbacks.Horizon()])
