"""Reading exported weights without executing anything they contain.

An export (`export.saved_model.save`) is a SavedModel directory. This module reads only two of
its assets: theta as plain arrays, and one JSON file. It reads them with NumPy. It needs no
TensorFlow, and does not touch the graph.
"""

import hashlib
import json
import math
import os
import re
import zipfile
from typing import Any

import numpy as np

from lopt_keras import rules
from lopt_keras.rules.base import UpdateRule
from lopt_keras.types import Arrays

FORMAT_VERSION = 2
METADATA_FILE = os.path.join("assets", "metadata.json")
THETA_FILE = os.path.join("assets", "theta.npz")

LARGEST_METADATA, LARGEST_THETA, LARGEST_FILE = 2**17, 2**24, 2**27
"""Bytes of the metadata, numbers in theta, bytes of any other file: each tens to hundreds of times
what an export has. What claims more is refused before any of it is read."""

_DEEPEST_METADATA = 64
_MARGIN_OF_ENTRY = 1024
"""Bytes of an archive beside the numbers of an entry: names and headers."""


def read(path: str | os.PathLike[str]) -> tuple[UpdateRule, Arrays, dict[str, Any]]:
    """The rule, theta and metadata of an export, checked.

    Args:
        path: directory of the SavedModel.

    Returns:
        `(rule, theta, metadata)`: an `UpdateRule`, a dict from name to float32
        array, and the content of the metadata asset.

    Raises:
        ValueError: if this is no export, or one that is truncated, altered, of
            another format version, or does not fit its rule; the message says
            which file or entry is wrong.
    """
    path = os.fspath(path)
    metadata = read_metadata(path)
    try:
        rule = rules.get(metadata["rule"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"The export {path!r} names an unusable rule: {error}") from error
    _check_files(path, metadata["files"])
    file = os.path.join(path, THETA_FILE)
    try:
        _check_archive(file, rule)
    except Exception as error:  # A made-up archive can raise anything.
        # If it is not what was written, that is the better message.
        _check_digests(path, metadata)
        raise ValueError(f"The theta in {file!r} is unusable: {error}") from error
    _check_digests(path, metadata)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return rule, rule.check_theta(dict(arrays)), metadata
    except Exception as error:
        raise ValueError(f"The theta in {file!r} is unusable: {error}") from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of an export: a dict, see `export.saved_model.save`.

    Raises:
        ValueError: if the file is missing, no JSON, altered or of another version.
    """
    file = os.path.join(path, METADATA_FILE)
    if not os.path.isdir(path):
        raise ValueError(f"`weights` must name an export directory. There is none at {path!r}.")
    try:
        with open(file, "rb") as f:
            content = f.read(LARGEST_METADATA + 1)
        metadata = parse_metadata(content)
    except OSError as error:
        raise ValueError(f"{path!r} is not an export of lopt_keras: {error}") from error
    except ValueError as error:
        raise ValueError(f"The metadata {file!r} is not valid JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(
            f"The metadata {file!r} must be a JSON object. Received: {type(metadata).__name__}"
        )
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"The export {path!r} has format version {version!r}; "
            f"this version of lopt_keras reads {FORMAT_VERSION}."
        )
    missing = {"rule", "files", "sha256"} - set(metadata)
    if missing:
        raise ValueError(f"The metadata {file!r} lacks {sorted(missing)}.")
    if not isinstance(metadata["files"], dict):
        raise ValueError(f"The metadata {file!r} must have an object as 'files'.")
    if metadata["sha256"] != metadata_digest(metadata):
        raise ValueError(f"The metadata {file!r} has been altered: its sha256 does not match.")
    return metadata


def parse_metadata(content: bytes) -> dict[str, Any]:
    """The JSON of metadata.

    Args:
        content: bytes.

    Raises:
        ValueError: if it is no JSON, or larger or more deeply nested than any export's.
    """
    if len(content) > LARGEST_METADATA:
        raise ValueError(f"it is larger than {LARGEST_METADATA} bytes")
    outside_of_text = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content)
    characters = np.frombuffer(outside_of_text, "uint8")
    opened, closed = (np.isin(characters, list(brackets)) for brackets in (b"[{", b"]}"))
    depths = np.cumsum(opened, dtype="int32") - np.cumsum(closed, dtype="int32")
    if depths.max(initial=0) > _DEEPEST_METADATA:
        raise ValueError(f"it is nested more than {_DEEPEST_METADATA} deep")
    return json.loads(content)


def metadata_digest(metadata: dict[str, Any]) -> str:
    """sha256 of the metadata without its own `sha256` entry, as hexadecimal text."""
    content = {name: value for name, value in metadata.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digests(path: str | os.PathLike[str]) -> dict[str, str]:
    """sha256 of each file of an export except the metadata: dict from relative path."""
    digests = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            relative = os.path.relpath(file, path)
            if relative != METADATA_FILE:
                digests[relative.replace(os.sep, "/")] = _digest(file)
    return digests


def _digest(file: str) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_rule_size(rule: UpdateRule) -> int:
    """Raises if a rule's theta would be far larger than any that was ever meta-trained.

    Returns:
        The numbers in it.

    Raises:
        ValueError: naming the rule and the size.
    """
    numbers = sum(math.prod(shape) for shape in rule.theta_shapes().values())
    if numbers > LARGEST_THETA:
        raise ValueError(
            f"The theta of a rule must have at most {LARGEST_THETA} numbers. "
            f"Received: {rule} with {numbers}"
        )
    return numbers


def _check_files(path: str | os.PathLike[str], digests: dict[str, str]) -> None:
    """Raises if a listed file is missing, outside of the export or absurdly large."""
    if THETA_FILE.replace(os.sep, "/") not in digests:
        raise ValueError(f"The metadata of the export {path!r} lists no {THETA_FILE!r}.")
    for name in digests:
        file = os.path.join(path, name)
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError(f"The export {path!r} lists a file outside of itself: {name!r}")
        if not os.path.isfile(file):
            raise ValueError(f"The export {path!r} is incomplete: {name!r} is missing.")
        if os.path.getsize(file) > LARGEST_FILE:
            raise ValueError(
                f"The export {path!r} has a file of {os.path.getsize(file)} bytes, {name!r}. "
                f"At most {LARGEST_FILE} are expected."
            )


def _check_archive(file: str, rule: UpdateRule) -> None:
    """Raises if the arrays of an archive would take more memory than theta does.

    `numpy.savez` does not compress, so nothing is larger than the file; and NumPy allocates
    what the header of an array says, so that must be what is there.
    """
    largest = 8 * check_rule_size(rule) + _MARGIN_OF_ENTRY * (len(rule.theta_shapes()) + 1)
    if os.path.getsize(file) > largest:
        raise ValueError(
            f"it has {os.path.getsize(file)} bytes, where {rule} has at most {largest}"
        )
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > os.path.getsize(file):
            raise ValueError("its entries are compressed or overlap")
        for entry in entries:
            with archive.open(entry) as content:
                _check_header(entry, content)


def _check_header(entry: Any, content: Any) -> None:
    version = np.lib.format.read_magic(content)
    if version != (1, 0):
        raise ValueError(f"{entry.filename!r} is an array of another format: {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(content)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > entry.file_size:
        raise ValueError(
            f"{entry.filename!r} has {entry.file_size} bytes, and claims to be {shape} of {dtype}"
        )


def _check_digests(path: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
    for name, expected in metadata["files"].items():
        if _digest(os.path.join(path, name)) != expected:
            raise ValueError(
                f"The export {path!r} is damaged: {name!r} is truncated or altered, "
                "its sha256 does not match."
            )
