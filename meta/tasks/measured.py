"""Figures of tasks that take long to compute: those that ship, and those computed here."""

import functools
import hashlib
import json
import os
import warnings

import tqdm

from meta.datasets import preparing
from meta.tasks.sampling import distribution
from meta.training import run_directory


class Measured:
    """Dicts from a task's key to its figures, as JSON.

    What ships is a file beside this one. What is computed besides is kept where datasets are
    prepared, in a folder `lopt_keras` of that directory.

    Args:
        name: of the files.
        measure: function from some `Config`s that are one program, and `data_dir`, to the list
            of their figures.
        parse: function that makes figures of what JSON holds, and raises a TypeError or a
            ValueError if it cannot.
    """

    def __init__(self, name, measure, parse=list):
        self.file = os.path.join(os.path.dirname(__file__), name)
        self._name, self._measure, self._parse = name, measure, parse
        self.shipped = functools.cache(lambda: self._read(self.file))

    def known(self, data_dir=None):
        """All that is known: dict from key to figures.

        Args:
            data_dir: where datasets are prepared; None for tensorflow-datasets' own directory.
        """
        file = self._own_file(data_dir)
        try:
            own = self._read(file)
        except ValueError as error:
            warnings.warn(f"{error} They are computed anew.", stacklevel=2)
            own = {}
        return {**own, **self.shipped()}

    def complete(self, configs, data_dir=None, ships=False):
        """Computes what is lacking for some tasks, and writes it, program by program.

        Args:
            configs: sequence of `Config`.
            data_dir: where datasets are prepared.
            ships: whether it is written to the file that ships.

        Returns:
            The figures of each: list.
        """
        found = dict(self.shipped() if ships else self.known(data_dir))
        missing = {identify(c): c for c in configs if identify(c) not in found}
        if missing:
            self._compute(missing, found, data_dir, ships)
        return [found[identify(config)] for config in configs]

    def _compute(self, missing, found, data_dir, ships):
        file = self.file if ships else self._own_file(data_dir)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        groups = distribution.by_program(missing.values()).values()
        description = f"{os.path.splitext(self._name)[0]} of {len(missing)} tasks"
        for group in tqdm.tqdm(groups, desc=description, unit="program"):
            figures = self._measure(group, data_dir)
            found |= {identify(c): x for c, x in zip(group, figures, strict=True)}
            kept = found if ships else {k: x for k, x in found.items() if k not in self.shipped()}
            run_directory.write_json(file, kept)
        self.shipped.cache_clear()
        print(f"Kept in {file}")

    def _own_file(self, data_dir):
        return os.path.join(preparing.directory(data_dir), "lopt_keras", self._name)

    def _read(self, file):
        """Dict from key to figures, empty if there is no such file.

        Raises:
            ValueError: if it is damaged, naming it.
        """
        if not os.path.exists(file):
            return {}
        try:
            with open(file, encoding="utf-8") as f:
                return {key: self._parse(values) for key, values in json.load(f).items()}
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"The figures of tasks in {file!r} are damaged: {error}.") from error


def identify(config):
    """The key of a task, 16 hexadecimal digits."""
    return hashlib.sha256(config.key.encode()).hexdigest()[:16]
