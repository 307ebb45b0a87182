"""Reading exported weights without executing anything they contain.

An export (`export.saved_model.save`) is a SavedModel directory. Of its content
only two assets are read here, theta as plain arrays and one JSON file, with
NumPy alone: no TensorFlow is needed, and the graph is left alone.
"""

import hashlib
import json
import os
import zipfile

import numpy as np

from lopt_keras import rules

FORMAT_VERSION = 2
METADATA_FILE = os.path.join("assets", "metadata.json")
THETA_FILE = os.path.join("assets", "theta.npz")


def read(path):
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
    _check_digests(path, metadata)
    file = os.path.join(path, THETA_FILE)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return rule, rule.check_theta(dict(arrays)), metadata
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"The theta in {file!r} is unusable: {error}") from error


def read_metadata(path):
    """The metadata of an export: a dict, see `export.saved_model.save`.

    Raises:
        ValueError: if the file is missing, no JSON, altered or of another version.
    """
    file = os.path.join(path, METADATA_FILE)
    if not os.path.isdir(path):
        raise ValueError(f"`weights` must name an export directory. There is none at {path!r}.")
    try:
        with open(file, encoding="utf-8") as f:
            metadata = json.load(f)
    except OSError as error:
        raise ValueError(f"{path!r} is not an export of lopt_keras: {error}") from error
    except ValueError as error:
        raise ValueError(f"The metadata {file!r} is not valid JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"The metadata {file!r} must be a JSON object. Received: {metadata!r:.80}")
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


def metadata_digest(metadata):
    """sha256 of the metadata without its own `sha256` entry, as hexadecimal text."""
    content = {name: value for name, value in metadata.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digests(path):
    """sha256 of each file of an export except the metadata: dict from relative path."""
    digests = {}
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            relative = os.path.relpath(file, path)
            if relative != METADATA_FILE:
                digests[relative.replace(os.sep, "/")] = _digest(file)
    return digests


def _digest(file):
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check_digests(path, metadata):
    for name, expected in metadata["files"].items():
        file = os.path.join(path, name)
        if not os.path.isfile(file):
            raise ValueError(f"The export {path!r} is incomplete: {name!r} is missing.")
        if _digest(file) != expected:
            raise ValueError(
                f"The export {path!r} is damaged: {name!r} is truncated or altered, "
                "its sha256 does not match."
            )
