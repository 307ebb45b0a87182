from pathlib import Path

from setuptools import find_packages, setup

_ROOT = Path(__file__).parent
_VERSION = {}
exec((_ROOT / "lopt_keras" / "version.py").read_text(), _VERSION)

_META = [
    "absl-py>=2.1",
    "importlib_resources>=6.0",  # tensorflow-datasets 4.9.10 imports it without asking for it.
    "matplotlib>=3.8",
    "scikit-image>=0.22",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "tensorboard>=2.19",
    "tensorflow-datasets>=4.9.9",
    "tqdm>=4.66",
]
_BACKENDS = ["jax>=0.5", "torch>=2.6"]
_TEST = ["pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.6", "wheel"]

setup(
    name="lopt_keras",
    version=_VERSION["__version__"],
    description="Learned optimizers for Keras: small neural networks, meta-trained to train yours.",
    long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lopt_keras*", "meta*", "export*"]),
    package_data={
        "lopt_keras.pretrained": ["*/*", "*/*/*"],
        "meta.analysis": ["*.html"],
        "meta.continuation": ["*.npz"],
        "meta.evaluation": ["*.html"],
        "meta.tasks": ["*.json"],
    },
    install_requires=["keras>=3.13", "numpy>=1.26", "tensorflow>=2.20"],
    extras_require={"meta": _META, "test": _META + _TEST, "backends": _BACKENDS},
    entry_points={
        "console_scripts": [
            "lopt-analyze = export.command:analyze",
            "lopt-continuation = export.command:continuation",
            "lopt-meta-train = export.command:meta_train",
            "lopt-evaluate = export.command:evaluate",
            "lopt-export = export.command:export",
        ]
    },
    # Not `build`: on a disk that does not tell capitals from small letters, that is Bazel's BUILD.
    options={"build": {"build_base": "out/build"}},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
