"""A population of learned optimizers that train each other: generations, checkpoints, summaries."""

import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from export import backend
from export import checkpoint as run_checkpoint
from lopt_keras import gating
from lopt_keras.types import Array, Arrays, Tensors
from lopt_keras.validation import check_integer, check_number
from meta import progress, random
from meta.population.evolution import Evolution
from meta.population.genealogy import Genealogy
from meta.population.members import Hyperparameters, Members, gather
from meta.population.training import Training

_KEPT_CHECKPOINTS = 3
_TRAINING, _SCORES, _START = range(3)  # What seeds are for.


class Population:
    """N members that are trained, scored and copied, and can be killed and resumed.

    All randomness of a generation comes from the seed and its number, and all else that it
    depends on is in the checkpoint, the genealogy included: a resumed run ends with the same
    bits as one that was never interrupted.

    Args:
        training: `Training`.
        evolution: `Evolution`.
        num_members: N, at least 2.
        steps_per_generation: K, outer steps between scores.
        seed: integer.
        out_dir: where checkpoints and summaries go; None to keep nothing.
        num_problems: fresh problems by which the members are scored.
        initial_theta: dict of `[N, ...]`. By default each member has the rule's own start
            for a seed of its own.
        pool: thetas of trainers that stay as they are: dict of `[M, ...]`, "start" for those
            with which the members start, or None: the members train each other as they are.
        trainers: `[N]` integers, the first trainers. By default drawn.
        hyperparameters: `Hyperparameters` to start with. By default drawn.
        takes_back: whether a member that a generation made worse, by its scores before and
            after on the same problems, is afterwards what it was before.
        progress_weight: how much of a member's fitness is the progress of those it trains.
            Its fitness is its score plus this times the mean over them of how far their score
            has moved in the generation, more than all members' did on average; 0 of those
            that train nobody.
        checkpoint_every: generations between checkpoints.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is expected.
    """

    def __init__(
        self,
        training: Training,
        evolution: Evolution,
        num_members: int = 10,
        steps_per_generation: int = 20,
        seed: int = 0,
        out_dir: str | None = None,
        num_problems: int = 64,
        initial_theta: Mapping[str, Any] | None = None,
        pool: Tensors | str | None = None,
        trainers: Sequence[int] | Array | None = None,
        hyperparameters: Hyperparameters | None = None,
        takes_back: bool = True,
        progress_weight: float = 0.0,
        checkpoint_every: int = 10,
    ) -> None:
        evolution.check_size(num_members)
        check_integer("steps_per_generation", steps_per_generation, low=1)
        check_integer("num_problems", num_problems, low=1)
        check_number("progress_weight", progress_weight)
        check_integer("checkpoint_every", checkpoint_every, low=1)
        self._training, self._evolution = training, evolution
        self._num_members, self._steps = num_members, steps_per_generation
        self._seed_value, self._seed = seed, random.seed(seed)
        self._out_dir, self._checkpoint_every = out_dir, checkpoint_every
        self._num_problems, self._progress_weight = num_problems, progress_weight
        self._takes_back = takes_back
        theta = _tensors(self._random_theta() if initial_theta is None else initial_theta)
        if isinstance(pool, str) and pool != "start":
            raise ValueError(f"`pool` must be thetas, 'start' or None. Received: pool={pool!r}")
        self._pool = theta if isinstance(pool, str) else pool
        self._members = self._first_members(theta, trainers, hyperparameters)
        self.genealogy = Genealogy(num_members)
        self._previous = np.full(num_members, np.nan, np.float32)
        self._estimate = progress.Estimate([1.0])
        # Of TensorFlow, once there is a directory.
        self._checkpoint: Any = None
        self._checkpoints: Any = None
        self._variables: Any = None

    @property
    def generation(self) -> int:
        """Generations so far."""
        return len(self.genealogy.generations)

    @property
    def theta(self) -> Arrays:
        """The members' theta: dict of `[N, ...]` arrays."""
        return {name: value.numpy() for name, value in self._members.theta.items()}

    @property
    def trainers(self) -> Array:
        """`[N]` integers, who trains each member from now on."""
        return self._members.trainers.numpy()

    @property
    def hyperparameters(self) -> Hyperparameters:
        """`Hyperparameters` of arrays, from now on."""
        return Hyperparameters(*(x.numpy() for x in self._members.hyperparameters))

    @property
    def best(self) -> int:
        """The index of the member with the best score of the last generation.

        Of those that are still there: with `progress_weight`, it may be one that was given up.
        """
        scores = np.nan_to_num(self.genealogy.scores[-1], nan=np.inf)
        scores[[loser for loser, _ in self.genealogy.generations[-1]["copies"]]] = np.inf
        return int(np.argmin(scores))

    def run(self, num_generations: int) -> None:
        """Goes on until there were so many generations in all.

        It restores first, if that was not done and there is a directory.

        Raises:
            OSError: if something cannot be written; the message says what.
        """
        if self._checkpoints is None and self._out_dir is not None:
            self.restore()
        bar = tqdm.tqdm(
            total=num_generations,
            initial=self.generation,
            unit="generation",
            dynamic_ncols=True,
            bar_format=progress.BAR_FORMAT,
            disable=self._out_dir is None,
        )
        with bar, self._writer().as_default():
            while self.generation < num_generations:
                if self._estimate.is_compiled(0):
                    metrics = self._timed_generation()
                else:
                    with progress.telling(bar, "compiling"):
                        metrics = self._timed_generation()
                bar.update()
                self._tell(bar, num_generations)
                self._summarise(metrics)
                at_end = self.generation == num_generations
                if at_end or self.generation % self._checkpoint_every == 0:
                    self._save()

    def restore(self) -> int:
        """Continues from the newest whole checkpoint in `out_dir`, if there is any.

        Returns:
            The generation at which it stands.

        Raises:
            ValueError: if there is no `out_dir`, or if there are checkpoints, but none that is
                whole and of such a population.
        """
        if self._out_dir is None:
            raise ValueError("`out_dir` must be given to restore from it. Received: out_dir=None")
        self._variables = tf.nest.map_structure(tf.Variable, self._saved())
        self._checkpoint = tf.train.Checkpoint(variables=tf.nest.flatten(self._variables))
        newest = run_checkpoint.restore_newest(self._checkpoint, self._out_dir, "population")
        if newest is not None:
            self._members, previous, text = tf.nest.map_structure(
                tf.convert_to_tensor, self._variables
            )
            self._previous, self.genealogy = previous.numpy(), Genealogy.parse(text.numpy())
        folder = os.path.join(self._out_dir, run_checkpoint.CHECKPOINTS)
        self._checkpoints = tf.train.CheckpointManager(
            self._checkpoint, folder, max_to_keep=_KEPT_CHECKPOINTS
        )
        return self.generation

    def next_generation(self) -> Arrays:
        """Trains, scores and copies once. Returns the metrics: dict of `[N]` arrays."""
        first, steps = self.generation * self._steps, self._steps
        members, metrics = self._training.advance(
            self._members,
            self._pool,
            random.fold_in(self._seed, _TRAINING),
            tf.constant(first),
            tf.constant(steps),
        )
        step = first + steps
        members, scores, reverted = self._scored(members, step)
        fitness = self._fitness(scores, members.trainers.numpy())
        self._members = self._evolve(members, step, scores, fitness, reverted)
        return {name: x.numpy() for name, x in metrics.items()}

    def _scored(self, members: Members, step: int) -> tuple[Members, Array, list[int]]:
        """`(Members, scores, reverted)` after a generation: `[N]` floats, indices of members."""
        seed = random.fold_in(random.fold_in(self._seed, _SCORES), step)
        if not self._takes_back:
            scores = self._training.scoring(members.theta, seed, self._num_problems)
            return members, scores.numpy(), []
        before = self._members
        both = tf.nest.map_structure(lambda *x: tf.concat(x, axis=0), members.theta, before.theta)
        scores = self._training.scoring(both, seed, self._num_problems).numpy()
        after, old = scores[: self._num_members], scores[self._num_members :]
        worse = ~(after <= old)
        restored = tf.nest.map_structure(
            functools.partial(gating.select, tf.constant(worse)), before, members
        )
        return restored, np.where(worse, old, after), np.flatnonzero(worse).tolist()

    def _fitness(self, scores: Array, trainers: Array) -> Array:
        if not self._progress_weight or np.isnan(self._previous).all():
            return scores
        moved = scores - self._previous
        moved = np.nan_to_num(moved - np.nanmean(moved))
        progress = [
            moved[trainers == member].mean() if (trainers == member).any() else 0.0
            for member in range(self._num_members)
        ]
        return scores + np.float32(self._progress_weight) * np.asarray(progress, np.float32)

    def _evolve(
        self, members: Members, step: int, scores: Array, fitness: Array, reverted: Sequence[int]
    ) -> Members:
        rng = np.random.default_rng([self._seed_value, self.generation])
        trainers = members.trainers.numpy()
        hyperparameters = Hyperparameters(*(x.numpy() for x in members.hyperparameters))
        copies = self._evolution.copies(fitness, rng)
        self.genealogy.record(step, scores, fitness, trainers, hyperparameters, reverted, copies)
        origin = np.arange(self._num_members)
        for loser, winner in copies:
            origin[loser] = winner
        self._previous = scores[origin]
        size = self._num_members
        if self._pool is not None:
            size = len(next(iter(self._pool.values())))
        trainers, hyperparameters = self._evolution.inherit(
            copies, trainers, hyperparameters, size, rng, itself=self._pool is None
        )
        return gather(members, tf.constant(origin))._replace(
            trainers=tf.constant(trainers, tf.int32),
            hyperparameters=_tensors(hyperparameters),
        )

    def _random_theta(self) -> Arrays:
        rule = self._training.estimator.rule
        seeds = np.random.SeedSequence(self._seed_value).generate_state(self._num_members)
        thetas = [rule.init_theta(int(seed)) for seed in seeds]
        return {name: np.stack([theta[name] for theta in thetas]) for name in thetas[0]}

    def _first_members(
        self,
        theta: Tensors,
        trainers: Sequence[int] | Array | None,
        hyperparameters: Hyperparameters | None,
    ) -> Members:
        rng = np.random.default_rng([self._seed_value, 2**31])
        pool = theta if self._pool is None else self._pool
        size = len(next(iter(pool.values())))
        drawn = rng.integers(size, size=self._num_members)
        trainers = tf.constant(drawn if trainers is None else trainers, tf.int32)
        if hyperparameters is None:
            hyperparameters = self._evolution.draw(rng, self._num_members)
        hyperparameters = _tensors(hyperparameters)
        seed = random.fold_in(self._seed, _START)
        workers = self._training.init_workers(theta, hyperparameters, seed)
        state = self._training.init_state(theta, pool, trainers)
        return Members(theta, state, workers, trainers, hyperparameters)

    def _saved(self) -> Any:
        """What a checkpoint holds: a nest of tensors."""
        return self._members, self._previous, self.genealogy.to_json()

    def _save(self) -> None:
        if self._out_dir is None:
            return
        values = tf.nest.flatten(self._saved())
        for variable, value in zip(tf.nest.flatten(self._variables), values, strict=True):
            variable.assign(value)
        try:
            self._checkpoints.save(checkpoint_number=self.generation)
        except (tf.errors.OpError, OSError) as error:
            raise OSError(
                f"The checkpoint of generation {self.generation} cannot be written to "
                f"{self._out_dir!r}: {backend.reason(error)}"
            ) from error

    def _timed_generation(self) -> Arrays:
        start = time.perf_counter()
        metrics = self.next_generation()
        self._estimate.record(0, time.perf_counter() - start)
        return metrics

    def _tell(self, bar: tqdm.tqdm, num_generations: int) -> None:
        scores, left = self.genealogy.scores[-1], num_generations - self.generation
        told = [progress.remaining_text(self._estimate.remaining(left)) if left else ""]
        told += [f"best={np.nanmin(scores):.3f}", f"median={np.nanmedian(scores):.3f}"]
        bar.set_postfix_str(", ".join(filter(None, told)), refresh=False)

    def _writer(self) -> Any:
        if self._out_dir is None:
            return tf.summary.create_noop_writer()
        return tf.summary.create_file_writer(os.path.join(self._out_dir, "summaries"))

    def _summarise(self, metrics: Arrays) -> None:
        last, step = self.genealogy.generations[-1], self.genealogy.steps[-1]
        scores = self.genealogy.scores[-1]
        values = {f"{name}/median": np.nanmedian(x) for name, x in metrics.items()}
        for name, x in last["hyperparameters"].items():
            values |= {f"{name}/{q}": getattr(np, q)(x) for q in ("min", "median", "max")}
        values["score/best"], values["score/worst"] = np.nanmin(scores), np.nanmax(scores)
        values["score/median"] = np.nanmedian(scores)
        values["founders"] = len(set(self.genealogy.founders()[-1].tolist()))
        own = np.asarray(last["trainers"]) == np.arange(self._num_members)
        if self._pool is None:
            values["share_trained_by_self"] = own.mean()
        for name, value in values.items():
            tf.summary.scalar(name, float(value), step=step)


def _tensors(nest: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, nest)
