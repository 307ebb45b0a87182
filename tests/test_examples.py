"""Every example runs: as short as it can be."""

import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(file.stem for file in ROOT.glob("*.py"))
SMALLEST = {
    "custom_loop": {"steps": 3},
    "text": {"epochs": 1, "characters": 5_000},
    "own_meta_training": {"outer_steps": 1},
}
# It divides the processor, which has to happen before anything has used it.
IN_A_PROCESS_OF_ITS_OWN = "distributed"


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n != IN_A_PROCESS_OF_ITS_OWN])
def test_an_example_runs(name, tmp_path):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kwargs = SMALLEST.get(name, {"epochs": 1})
    if name == "own_meta_training":
        kwargs["out_dir"] = str(tmp_path)
    result = module.main(**kwargs)
    values = list(result.values()) if isinstance(result, dict) else np.ravel(result)
    assert len(values) > 0
    assert np.isfinite(values).all()


def test_an_example_runs_on_several_devices():
    code = f"import {IN_A_PROCESS_OF_ITS_OWN} as e; print('losses', *e.main(epochs=1))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (line,) = (x for x in result.stdout.splitlines() if x.startswith("losses"))
    assert np.isfinite([float(x) for x in line.split()[1:]]).all()


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short(name):
    assert len((ROOT / f"{name}.py").read_text().splitlines()) < 80


def test_the_list_of_examples_is_whole():
    page = (ROOT / "README.md").read_text()
    assert all(f"[{name}.py]({name}.py)" in page for name in SCRIPTS)
