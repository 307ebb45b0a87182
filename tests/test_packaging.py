import configparser
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # From a copy: setuptools leaves a build folder behind.
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("lopt_keras", "meta", "export"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "dist", "."]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not (folder / "build").exists()
    (file,) = (folder / "dist").glob("lopt_keras-*.whl")
    return zipfile.ZipFile(file)


def read(wheel, name):
    (member,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(member).decode()


def test_the_wheel_has_the_three_packages_and_the_weights(wheel):
    content = set(wheel.namelist())
    for folder in ("lopt_keras", "meta", "export"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert file.relative_to(ROOT).as_posix() in content
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in content)


def test_console_commands_name_functions_that_exist(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(read(wheel, "entry_points.txt"))
    scripts = dict(parser["console_scripts"])
    assert set(scripts) == {
        "lopt-analyze",
        "lopt-continuation",
        "lopt-meta-train",
        "lopt-evaluate",
        "lopt-export",
    }
    for target in scripts.values():
        module, function = target.split(":")
        assert f"def {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_production_needs_keras_numpy_and_tensorflow_only(wheel):
    requirements = [
        line.removeprefix("Requires-Dist: ")
        for line in read(wheel, "METADATA").splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    production = {line.split(">")[0] for line in requirements if "extra ==" not in line}
    assert production == {"keras", "numpy", "tensorflow"}
    # One extra may name another.
    others = [line for line in requirements if not re.match(r"wheel|lopt[_-]keras\[", line)]
    assert all(">=" in line for line in others)


def test_no_command_touches_a_folder_that_may_be_bazels_file():
    """On a disk that does not tell capitals from small letters, `build` is BUILD."""
    rules = (ROOT / "Makefile").read_text()
    assert not re.search(r"(?m)^\t.*(?<!mkdocs )\bbuild\b", rules)


@pytest.mark.xdist_group("packaging")
def test_tests_of_a_group_run_in_one_process(request):
    """pytest 9.2 takes no notice of what pytest-xdist 3.8 writes: fixtures are made twice then."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process, or without `--dist=loadgroup`")
    assert request.node.nodeid.endswith("@packaging")
