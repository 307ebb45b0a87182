import importlib.machinery
import json
import sys
import types

import keras
import numpy as np
import pytest

from meta import provenance


def test_results_say_what_made_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "x.py"), "--flag=a b"])
    file = tmp_path / "deep" / "results.json"
    provenance.write_results(str(file), {5: [1.0], "a": 2})
    content = json.loads(file.read_text())
    made_by = content.pop("made_by")
    assert content == {"5": [1.0], "a": 2}
    assert made_by["command"] == "python x.py '--flag=a b'"
    assert made_by["commit"] == provenance.commit()
    assert made_by["versions"]["keras"] == keras.__version__
    assert made_by["versions"]["numpy"] == np.__version__
    assert [f.name for f in file.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize("module", ["package.command", "package.folder.__main__"])
def test_the_command_of_a_module_names_the_module(module, monkeypatch):
    spec = importlib.machinery.ModuleSpec(module, None, origin="/folder/file.py")
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", ["/folder/file.py", "--seed=1"])
    expected = f"python -m {module.removesuffix('.__main__')} --seed=1"
    assert provenance.made_by()["command"] == expected


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    file = tmp_path / "x.json"
    provenance.write_json(file, {"b": 1, "a": 2})
    assert file.read_text() == '{\n "a": 2,\n "b": 1\n}\n'
    with pytest.raises(TypeError):
        provenance.write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 2, "b": 1}
