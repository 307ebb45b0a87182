import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from problems import Quadratic
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lopt_keras import LearnedOptimizer, rules, saved_model
from meta import estimators, random, tasks
from meta.population.eligible import check_rule
from meta.population.evolution import Evolution
from meta.population.members import Hyperparameters
from meta.population.population import Population
from meta.population.training import METRICS, Training
from meta.tasks.scoring.normalized import RelativeToStart

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("population")

RULE_CONFIG = {
    "hidden_size": 2,
    "hidden_layers": 1,
    "momentum_decays": [0.9],
    "step_mult": 0.05,
    "exp_mult": 0.1,
}
RULE = rules.get("mlp", **RULE_CONFIG)
TASK_CONFIG = {"dimension": 2, "noise": [0.01, 0.02]}
SIZE, STEPS, GENERATIONS, SEED = 4, 3, 6, 3
EVOLUTION = Evolution(num_copied=1, multiplier=(0.1, 1.0), length=(0.5, 1.0))


def make_training(task, unroll_length=10):
    task = RelativeToStart(task)
    estimator = estimators.get("es", RULE, task, num_particles=4, unroll_length=unroll_length)
    return Training(estimator, STEPS)


@pytest.fixture(scope="module")
def training():
    return make_training(tasks.get("quadratic", **TASK_CONFIG))


def make(training, out_dir=None, seed=SEED, evolution=EVOLUTION, **kwargs):
    arguments = {"num_members": SIZE, "num_problems": 4, "checkpoint_every": 2, **kwargs}
    out_dir = out_dir and str(out_dir)
    return Population(
        training,
        evolution,
        seed=seed,
        out_dir=out_dir,
        **{"steps_per_generation": STEPS, **arguments},
    )


@pytest.fixture(scope="module")
def whole(training, tmp_path_factory):
    population = make(training, tmp_path_factory.mktemp("whole"))
    population.run(GENERATIONS)
    return population


def assert_same(first, second):
    assert first.genealogy.to_json() == second.genealogy.to_json()
    for name, value in first.theta.items():
        np.testing.assert_array_equal(value, second.theta[name])
    np.testing.assert_array_equal(first.trainers, second.trainers)
    np.testing.assert_array_equal(first.hyperparameters, second.hyperparameters)


def known(signs):
    """Thetas that step down the gradient (1), up (-1), or nowhere (0), as far as it is long."""
    thetas = []
    for sign in signs:
        theta = {name: np.zeros(shape, "float32") for name, shape in RULE.theta_shapes().items()}
        theta["w0"][0] = 1.0, -1.0
        theta["w1"][:, 0] = sign, -sign
        thetas.append(theta)
    return {name: np.stack([theta[name] for theta in thetas]) for name in thetas[0]}


@pytest.fixture(scope="module")
def noiseless():
    return make_training(Quadratic(), 4)


def test_a_score_is_the_mean_log_of_the_loss_over_the_first(noiseless):
    scores = noiseless.scoring(known([1, -1, 0]), random.seed(0), 1)
    # The gradient is normalised: each step is of the size step_mult.
    distance = 0.05 * np.arange(4)
    expected = [np.log(x**2).mean() for x in (1.0 - distance, 1.0 + distance, 1.0 + 0 * distance)]
    np.testing.assert_allclose(scores, expected, rtol=1e-3)


def test_losses_without_a_floor_are_compared_by_differences():
    task = Quadratic()
    task.__class__ = type("Unbounded", (Quadratic,), {"loss_floor": None})
    relative = RelativeToStart(task)
    setting = relative.draw(random.seed(0), 3)
    np.testing.assert_allclose(setting["initial"], [1.0] * 3)
    np.testing.assert_allclose(relative.score(tf.constant([1.0, 0.0, -2.0]), setting), [0, -1, -3])


def test_the_start_of_a_problem_is_the_one_that_it_is_relative_to():
    task = RelativeToStart(tasks.get("quadratic", dimension=3, noise=1e-6))
    setting = task.draw(random.seed(1), 5)
    start = task.init(random.seed(2), 5, setting)
    loss = task.loss(start, task.batch("train", random.seed(3), 5, setting), setting)
    np.testing.assert_allclose(task.score(loss, setting), np.zeros(5), atol=1e-4)
    assert len(set(np.round(loss.numpy(), 6))) == 5


def test_a_change_of_trainer_is_a_change_of_an_index(training):
    """A random member is trained by ones that step down its meta-gradient, up, and nowhere."""
    theta = {name: x.copy() for name, x in known([1, -1, 0, 0]).items()}
    for name, value in RULE.init_theta(0).items():
        theta[name][3] = value
    members = make(training, initial_theta=theta)._members
    multiplier = members.hyperparameters.multiplier[3].numpy()
    steps, program = [], training.advance.get_concrete_function
    for trainer in range(3):
        trained = members._replace(trainers=tf.constant([2, 2, 2, trainer]))
        arguments = trained, None, random.seed(9), tf.constant(STEPS), tf.constant(1)
        after, metrics = training.advance(*arguments)
        assert program(*arguments) is program(members, *arguments[1:])
        for name in theta:
            np.testing.assert_array_equal(after.theta[name][:3], theta[name][:3])
        steps.append({name: after.theta[name][3] - theta[name][3] for name in theta})
        # Each entry of normalised tensors moves by one unit, on average.
        moved = sum(x.size for x in theta.values()) / SIZE if trainer < 2 else 0
        expected = RULE_CONFIG["step_mult"] * multiplier * moved**0.5
        np.testing.assert_allclose(metrics["outer_step_size"][3], expected, rtol=1e-3)
        assert set(metrics) == set(METRICS)
    for down, up in zip(steps[0].values(), steps[1].values(), strict=True):
        np.testing.assert_allclose(down, -up, atol=1e-6)


def test_a_gradient_that_is_not_finite_moves_nobody_else(training):
    theta = known([1, 1, 1, 1])
    theta["w1"][2] = np.nan
    population = make(training, initial_theta=theta, trainers=[1, 2, 0, 0])
    arguments = None, random.seed(0), tf.constant(0), tf.constant(2)
    after = training.advance(population._members, *arguments)[0].theta["w0"].numpy()
    np.testing.assert_array_equal(after[1], theta["w0"][1])  # Of a broken trainer.
    assert np.isfinite(after).all()
    assert (after[0] != theta["w0"][0]).any()


def test_the_descendants_of_the_one_that_works_take_over(training):
    theta = known([-1, 0, 1, -1])
    population = make(training, initial_theta=theta)
    population.run(8)
    assert population.genealogy.founders()[-1].tolist() == [2] * 4
    assert population.genealogy.scores[-1].max() < -0.1
    # Without copies, and with a trainer that moves nothing, the others stay as bad as they are.
    arguments = {"initial_theta": theta, "trainers": [1] * 4, "evolution": Evolution("none")}
    alone = make(training, **arguments)
    alone.run(8)
    assert alone.genealogy.founders()[-1].tolist() == [0, 1, 2, 3]
    assert alone.genealogy.scores[-1][[0, 3]].min() > 0


def test_trainers_that_stay_as_they_are(noiseless):
    theta = known([1, 1, 1, 1])
    population = make(noiseless, initial_theta=theta, pool="start", trainers=[1, 0, 3, 2])
    members = population._members
    _, before = noiseless.advance(
        members, population._pool, random.seed(0), tf.constant(0), tf.constant(1)
    )
    # The population moves, and its trainers do not.
    stopped = members._replace(theta=_tensors(known([0, 0, 0, 0])))
    _, after = noiseless.advance(
        stopped, population._pool, random.seed(0), tf.constant(0), tf.constant(1)
    )
    assert before["outer_step_size"].numpy().min() > 0
    assert after["outer_step_size"].numpy().min() > 0


def _tensors(arrays):
    return {name: tf.constant(x) for name, x in arrays.items()}


def test_a_member_that_got_worse_is_what_it_was(training):
    # The first two are trained up their meta-gradients, in large steps.
    theta = known([1, 1, -1, -1])
    arguments = {"initial_theta": theta, "trainers": [2, 3, 2, 3], "evolution": Evolution("none")}
    multipliers = [5.0, 5.0, 1e-4, 1e-4]
    hyperparameters = Hyperparameters(*np.float32([multipliers, [0.1] * 4, [1.0] * 4]))
    population = make(training, hyperparameters=hyperparameters, **arguments)
    population.run(2)
    for generation in population.genealogy.generations:
        assert {0, 1} <= set(generation["reverted"])
    for name, value in population.theta.items():
        np.testing.assert_array_equal(value[:2], theta[name][:2])


def test_a_trainer_may_be_scored_by_the_progress_of_those_it_trains(training):
    population = make(training, progress_weight=2.0)
    population._previous = np.float32([0.0, 0.0, 0.0, 0.0])
    scores = np.float32([0.1, -0.3, 0.0, 0.2])  # Members 0 and 1 are trained by 3, 2 and 3 by 1.
    fitness = population._fitness(scores, np.array([3, 3, 1, 1]))
    np.testing.assert_allclose(fitness, scores + 2 * np.float32([0, 0.1, 0, -0.1]), atol=1e-6)
    np.testing.assert_array_equal(make(training)._fitness(scores, None), scores)


def test_an_interrupted_run_ends_with_the_same_bits(training, whole, tmp_path):
    for generations in (1, 4, GENERATIONS):
        population = make(training, tmp_path)
        population.run(generations)
    assert_same(population, whole)
    other = make(training, seed=SEED + 1)
    other.run(GENERATIONS)
    assert other.genealogy.to_json() != whole.genealogy.to_json()


def test_a_checkpoint_of_another_population_is_refused(training, whole):
    with pytest.raises(ValueError, match="is not one of this population"):
        make(training, whole._out_dir, num_members=5).restore()


def test_what_is_recorded(whole):
    generations = whole.genealogy.generations
    assert whole.genealogy.steps.tolist() == [STEPS * (i + 1) for i in range(GENERATIONS)]
    assert all(len(g["copies"]) == EVOLUTION.num_copied for g in generations)
    for before, after in itertools.pairwise(generations):
        losers = [loser for loser, _ in before["copies"]]
        for i in set(range(SIZE)) - set(losers):
            assert before["trainers"][i] == after["trainers"][i]
    events = EventAccumulator(os.path.join(whole._out_dir, "summaries"))
    events.Reload()
    names = {"score/best", "score/median", "multiplier/median", "share_trained_by_self"}
    assert names <= set(events.Tags()["tensors"])
    assert [e.step for e in events.Tensors("score/best")] == whole.genealogy.steps.tolist()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (rules.Adam(), "must be a network without a hand-designed"),
        (rules.LearnedHyperparameters(), "must be a network without a hand-designed"),
        (rules.MLP(hidden_size=2, step_mult=0.0), "cannot train: .* its steps are zero"),
    ],
)
def test_a_rule_that_cannot_train_itself_is_refused(rule, text):
    with pytest.raises(ValueError, match=text):
        check_rule(rule)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"num_members": 1}, "num_members=1"),
        ({"steps_per_generation": 0}, "steps_per_generation=0"),
        ({"num_problems": 0}, "num_problems=0"),
        ({"progress_weight": -1.0}, "progress_weight"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_arguments_are_checked(training, kwargs, text):
    with pytest.raises(ValueError, match=text):
        make(training, **kwargs)


FLAGS = [
    "--task=quadratic",
    f"--task_config={json.dumps(TASK_CONFIG)}",
    "--rule=mlp",
    f"--rule_config={json.dumps(RULE_CONFIG)}",
    "--num_particles=4",
    "--unroll_length=10",
    f"--num_members={SIZE}",
    f"--num_generations={GENERATIONS}",
    f"--steps_per_generation={STEPS}",
    "--num_problems=4",
    "--num_copied=1",
    "--multiplier=0.1,1",
    "--length=0.5,1",
    f"--seed={SEED}",
    "--checkpoint_every=2",
]
WATCHED = """
import os, signal, sys
import keras
from absl import flags
from export import command as commands
from lopt_keras import rules
from lopt_keras.rules.hand_designed import HandDesigned
from meta.population import command
from meta.population.population import Population

def refuse(*args, **kwargs):
    raise AssertionError("a hand-designed optimizer is made")

def watch(cls):
    cls.__init__ = refuse
    for subclass in cls.__subclasses__():
        watch(subclass)

watch(HandDesigned)
keras.optimizers.Optimizer.__init__ = refuse
for make in (keras.optimizers.SGD, keras.optimizers.Adam, rules.SGD, rules.AdamW, rules.Muon):
    try:
        make()
    except AssertionError:
        continue
    sys.exit(f"{make} is not watched")
save, killed_at = Population._save, int(sys.argv.pop(1))

def save_and_die(population):
    save(population)
    if population.generation == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)

Population._save = save_and_die
flags.adopt_module_key_flags(command)
commands.run(command.main)
"""


def watched(tmp_path, killed_at):
    """Runs the command, in which no hand-designed optimizer can be made."""
    code = [sys.executable, "-c", WATCHED, str(killed_at)]
    cache = f"--tf_xla_persistent_cache_directory={tmp_path / 'compiled'}"
    return subprocess.run(
        [*code, *FLAGS, f"--out_dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_XLA_FLAGS": cache},
    )


def test_the_command_is_killed_and_resumed_and_makes_no_hand_designed_optimizer(tmp_path, whole):
    killed = watched(tmp_path, 4)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = watched(tmp_path, -1)
    assert result.returncode == 0, result.stderr
    assert "Resuming at generation 4." in result.stdout
    assert "best=" in result.stderr
    assert "median=" in result.stderr
    run = tmp_path / "run"
    content = json.loads((run / "genealogy.json").read_text())
    assert set(content.pop("made_by")) == {"command", "commit", "versions"}
    assert content == whole.genealogy.to_dict()
    assert (run / "genealogy.png").read_bytes().startswith(b"\x89PNG")
    _, theta, metadata = saved_model.read(run / "export")
    for name, value in whole.theta.items():
        np.testing.assert_array_equal(theta[name], value[whole.best])
    assert metadata["ancestry"] == whole.genealogy.ancestry(whole.best)
    assert metadata["ancestry"][-1]["member"] == metadata["member"] == whole.best
    assert metadata["outer_steps"] == STEPS * GENERATIONS
    assert LearnedOptimizer(weights=run / "export").rule == RULE


REFUSED = {
    "--rule=adam": "must be a network without a hand-designed optimizer inside",
    '--rule_config={"step_mult": 0}': "cannot train",
    "--num_members=1": "`num_members` must be",
    "--num_members=3": "`num_members` must be at least 4",
    "--num_particles=7": "`num_particles` must be even",
    "--multiplier=1": "`--multiplier` must be LOW,HIGH. Received: --multiplier=1",
    "--stddev=0.3,0.1": "`stddev` must be",
    "--length=0.5,2": "`length` must be",
    "--new_trainer=2": "`new_trainer` must be a probability",
    "--progress_weight=-1": "`progress_weight` must be",
    '--task_config={"dimension": 0}': "dimension",
    "--horizon=35": "`horizon` must be a multiple of unroll_length",
}
TRIED = """
import json, sys
from absl import app, flags
from meta.population import command

for flag in sys.argv[2:]:
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["population", "--task=quadratic", f"--out_dir={sys.argv[1]}", flag])
    try:
        command.main(["population"])
    except app.UsageError as error:
        print(json.dumps(str(error)))
"""


def test_bad_flags_are_refused_before_any_work(tmp_path):
    code = [sys.executable, "-c", TRIED, str(tmp_path / "out"), *REFUSED]
    result = subprocess.run(code, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    messages = [json.loads(line) for line in result.stdout.splitlines()]
    for message, text in zip(messages, REFUSED.values(), strict=True):
        assert text in message
    assert not (tmp_path / "out").exists()
