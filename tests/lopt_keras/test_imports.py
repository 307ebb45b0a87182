import subprocess
import sys

import pytest

RESEARCH = ["tensorflow_datasets", "matplotlib", "sklearn", "skimage", "tqdm", "tensorboard"]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("lopt_keras", ["meta", "export", *RESEARCH]),
        ("export", ["meta", *RESEARCH]),
    ],
)
def test_imports_run_one_way(module, forbidden):
    # Keras itself imports matplotlib and scikit-learn where it finds them.
    code = (
        "import sys, keras; before = set(sys.modules)\n"
        f"import {module}; print(sorted((set(sys.modules) - before) & set({forbidden})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
