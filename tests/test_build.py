import ast
import functools
import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("lopt_keras", "meta", "export", "benchmarks", "examples", "tests")
RULES = {"py_library", "py_binary", "py_test"}
ATTRIBUTES = {"name", "srcs", "deps", "data", "imports", "main", "args", "testonly"}


STARLARK = (
    *(ast.Module, ast.Expr, ast.Assign, ast.Name, ast.Load, ast.Store, ast.Constant),
    *(ast.Call, ast.keyword, ast.Attribute, ast.List, ast.Tuple, ast.Dict),
    *(ast.Subscript, ast.Slice, ast.UnaryOp, ast.USub, ast.BinOp, ast.Add, ast.IfExp),
    *(ast.ListComp, ast.comprehension),
)
"""What BUILD is made of: the part of Python that Bazel reads in the same way."""

METHODS = {"get", "items", "keys", "replace", "rpartition", "split", "startswith"}
"""Of strings and dicts, the same in Python and in Starlark, given the arguments of BUILD."""


@functools.cache
def calls():
    """The calls of BUILD, which is valid Python, as Bazel makes them: list of (rule, arguments)."""
    made = []

    def recorded(rule):
        return lambda *args, **kwargs: made.append((rule, args, kwargs))

    names = {rule: recorded(rule) for rule in ("load", "package", "licenses", "exports_files")}
    names |= {rule: recorded(rule) for rule in RULES}
    code = compile((ROOT / "BUILD").read_text(encoding="utf-8"), "BUILD", "exec")
    exec(code, {"__builtins__": {}, "len": len, "glob": files, **names})
    return made


@functools.cache
def targets():
    """Dict from the name of each target to its rule and arguments."""
    found = {}
    for rule, args, arguments in calls():
        if rule in RULES:
            assert not args
            assert set(arguments) <= ATTRIBUTES, arguments
            name = arguments["name"]
            assert name not in found, f"{name} is defined twice"
            lists = {key: arguments[key] for key in ("srcs", "deps", "imports")}
            for key, values in lists.items():
                assert len(values) == len(set(values)), f"{name}: {key} has something twice"
            data = set(arguments.get("data", ()))
            found[name] = {"rule": rule, "main": arguments.get("main"), "data": data, **lists}
    return found


def files(patterns, exclude=()):
    """What Bazel's `glob` gives: the paths from the root that match, sorted."""
    found = {
        path
        for pattern in patterns
        for path in glob.glob(pattern, root_dir=ROOT, recursive=True)
        if (ROOT / path).is_file() and "__pycache__" not in path
    }
    assert found, patterns
    return sorted(found - set(exclude))


def closure(name, known):
    """The names of a target and of all that it depends on."""
    found, waiting = set(), [name]
    while waiting:
        target = waiting.pop()
        if target not in found:
            found.add(target)
            waiting += [d[1:] for d in known[target]["deps"] if d.startswith(":")]
    return found


def provided(name, known):
    """Dict from each module that a target can import to its file, and set of its packages."""
    modules, packages = {}, set()
    for target in (known[x] for x in closure(name, known)):
        packages |= {d.removeprefix("@pypi//") for d in target["deps"] if d.startswith("@")}
        for source in target["srcs"]:
            # By `imports` on the path; the tests' own helpers, by their conftest.
            for root in ("", *(f"{x}/" for x in target["imports"] if x != "."), "tests/meta/"):
                if source.startswith(root):
                    module = source.removeprefix(root).removesuffix(".py").replace("/", ".")
                    modules[module.removesuffix(".__init__")] = source
    return modules, packages


def imported(source):
    """The modules that a source imports, anywhere in it, with the names taken from them.

    Of a test, those too of the programs that it holds as text.
    """
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(getattr(node, "value", None), str) and source.startswith("tests/"):
            yield from imported_in_text(node.value)


def imported_in_text(text):
    """The modules that a program in a string imports, or that `python -m` is to run."""
    packages = "lopt_keras|export|meta"
    if re.fullmatch(rf"({packages})\.[a-z_.]+", text) and is_module(text):
        yield text, ()
    for source, names in re.findall(rf"\bfrom ((?:{packages})[\w.]*) import (\w+)", text):
        yield source, [names]
    for name in re.findall(rf"\bimport ((?:{packages})[\w.]*)", text):
        yield name, ()


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl_py",
    "skimage": "scikit_image",
    "sklearn": "scikit_learn",
}
"""The packages that are not called as their modules are."""

OPTIONAL = {"ana_cont", "jax", "ray", "torch"}
"""What is imported only where Keras runs on it."""


def lacking(name, known):
    """What the files of a target import and its dependencies do not provide."""
    modules, packages = provided(name, known)
    for source in known[name]["srcs"]:
        for module, names in imported(source):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names | OPTIONAL or source == "setup.py":
                continue
            if not is_module(top) and top not in {pathlib.PurePath(f).stem for f in source_files()}:
                package = DISTRIBUTIONS.get(top, top)
                if package not in packages:
                    yield f"{source} imports {top}"
                continue
            parents = [module.rsplit(".", i)[0] for i in range(module.count(".") + 1)]
            submodules = [f"{module}.{x}" for x in names if is_module(f"{module}.{x}")]
            # `python -m meta.tasks` runs what is called __main__ there.
            for needed in (*parents, *submodules):
                if needed not in modules:
                    yield f"{source} imports {needed}"


def source_files():
    files = [ROOT / "setup.py"]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_bazel_reads_the_file_as_python_does():
    tree = ast.parse((ROOT / "BUILD").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert isinstance(node, STARLARK), ast.unparse(node)
        if isinstance(node, ast.Attribute):
            assert node.attr in METHODS, ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".split"):
            assert node.args, "Starlark's split needs a separator"
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = [name for name in set(names) if name.isupper()]
    stores = [n.targets[0].id for n in tree.body if isinstance(n, ast.Assign)]
    assert sorted(assigned) == sorted(stores), "a name is given once, and used"


def test_rules_come_from_rules_python():
    ((label, *names),) = [args for rule, args, _ in calls() if rule == "load"]
    assert label == "@rules_python//python:defs.bzl"
    assert set(names) == RULES


def test_every_file_has_a_target_and_every_target_its_files():
    listed = {source for target in targets().values() for source in target["srcs"]}
    assert source_files() - listed == set(), "files without a target in BUILD"
    assert listed - source_files() == set(), "files named in BUILD that do not exist"


def test_no_file_is_in_two_targets():
    """A module of two libraries is two modules to whoever depends on both."""
    owners = [s for t in targets().values() for s in t["srcs"] if s != "tests/run_pytest.py"]
    assert len(owners) == len(set(owners))


def test_tables_name_files_that_exist():
    """A row of a file that was renamed or removed would be without effect."""
    tree = ast.parse((ROOT / "BUILD").read_text(encoding="utf-8"))
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    assert len(tables) == 5
    for key in (key for table in tables for key in table.keys):
        assert key.value in source_files(), key.value


def test_every_test_file_has_a_test_target_of_its_own():
    tests = [t["srcs"][0] for t in targets().values() if t["rule"] == "py_test"]
    files = {file for file in source_files() if file.rpartition("/")[2].startswith("test_")}
    assert sorted(tests) == sorted(files)


def test_binaries_are_the_files_with_a_main():
    binaries = {t["srcs"][0] for t in targets().values() if t["rule"] == "py_binary"}
    mains = {
        file
        for file in source_files()
        if not file.startswith("tests/")
        and 'if __name__ == "__main__":' in (ROOT / file).read_text()
    }
    assert binaries == mains


def test_every_program_names_its_main():
    """Bazel looks for one that is called as the target is."""
    for name, target in targets().items():
        if target["rule"] in ("py_binary", "py_test"):
            assert target["main"] in target["srcs"], name


def test_dependencies_exist():
    names = targets()
    lock = (ROOT / "requirements_lock.txt").read_text().lower().replace("-", "_")
    locked = {line.split("==")[0] for line in lock.splitlines() if "==" in line}
    for name, target in names.items():
        for dependency in target["deps"]:
            if dependency.startswith(":"):
                assert dependency[1:] in names, f"{name} depends on a missing {dependency}"
            else:
                package = dependency.removeprefix("@pypi//")
                assert package in locked, f"{package} is not in requirements_lock.txt"


def test_what_a_target_imports_is_among_its_dependencies():
    known = targets()
    missing = {name: sorted(set(lacking(name, known))) for name in known}
    assert {name: what for name, what in missing.items() if what} == {}


def test_libraries_and_binaries_name_themselves_what_they_import():
    """Not by way of another: that one may drop it."""
    known = targets()
    for name, target in known.items():
        if target["rule"] != "py_test":
            # As if the others had no dependencies.
            others = {x: {**y, "deps": []} for x, y in known.items() if x != name}
            assert sorted(set(lacking(name, {**others, name: target}))) == [], name


def test_what_lies_beside_the_sources_is_their_data():
    known = targets()
    for package in ("lopt_keras", "meta", "export"):
        beside = {
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / package).rglob("*")
            if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
        }
        listed = {
            file
            for target in known.values()
            if any(source.startswith(f"{package}/") for source in target["srcs"])
            for file in target["data"]
        }
        assert beside - listed == set()


def read_from_root(text):
    """The patterns of the paths that a test names from its own place, `ROOT / "docs" / ...`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts = []
            while isinstance(node, ast.BinOp):
                parts.insert(0, node.right)
                node = node.left
            if "ROOT" in ast.unparse(node) or "__file__" in ast.unparse(node):
                known = [p.value if isinstance(p, ast.Constant) else "*" for p in parts]
                yield "/".join(known)


def test_what_tests_read_is_their_data():
    known = targets()
    checked = 0
    for name, target in known.items():
        if target["rule"] != "py_test":
            continue
        file = target["srcs"][0]
        within = {f for x in closure(name, known) for f in (*known[x]["srcs"], *known[x]["data"])}
        text = (ROOT / file).read_text(encoding="utf-8")
        for pattern in read_from_root(text):
            folders = (pathlib.PurePath(file).parent, pathlib.PurePath(file).parent.parent, "")
            there = {
                path
                for folder in folders
                for path in glob.glob(str(pathlib.PurePath(folder, pattern)), root_dir=ROOT)
                if "*" not in pattern.partition("/")[0]
            }
            inside = {p for p in within if any(p == t or p.startswith(f"{t}/") for t in there)}
            assert not there or inside, f"{file} reads {pattern}"
            checked += bool(there)
    assert checked > 3


@pytest.mark.parametrize("name", ["export_test_checkpoint", "meta_test_progress"])
def test_a_target_runs_with_nothing_but_what_it_names(name, tmp_path):
    """As in Bazel's sandbox, but for the packages, which are all there."""
    known = targets()
    for target in closure(name, known):
        for file in (*known[target]["srcs"], *known[target]["data"]):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    command = [sys.executable, "-P", "tests/run_pytest.py", "-q", known[name]["srcs"][0]]
    path = os.pathsep.join([str(tmp_path), *(x for x in sys.path if x and x != str(ROOT))])
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
