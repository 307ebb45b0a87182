"""The metadata is in pyproject.toml; here is what that file cannot say."""

from pathlib import Path

from setuptools import setup

_VERSION = {}
exec((Path(__file__).parent / "lopt_keras" / "version.py").read_text(), _VERSION)

setup(
    version=_VERSION["__version__"],
    # Not `build`: on a disk that does not tell capitals from small letters, that is Bazel's BUILD.
    options={"build": {"build_base": "out/build"}},
)
