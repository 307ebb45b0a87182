import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("lopt_keras", "meta", "export", "benchmarks", "tests")
RULES = {"py_library", "py_binary", "py_test"}


def calls():
    """The calls of BUILD, which is valid Python: (rule, arguments)."""
    for statement in ast.parse((ROOT / "BUILD").read_text()).body:
        assert isinstance(statement, ast.Expr)
        call = statement.value
        yield call.func.id, call


def targets():
    found = {}
    for rule, call in calls():
        if rule in RULES:
            arguments = {keyword.arg: keyword.value for keyword in call.keywords}
            name = ast.literal_eval(arguments["name"])
            assert name not in found, f"{name} is defined twice"
            lists = {key: ast.literal_eval(arguments[key]) for key in ("srcs", "deps")}
            found[name] = {"rule": rule, **lists}
    return found


def source_files():
    files = [ROOT / "setup.py"]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_rules_come_from_rules_python():
    loads = [call for rule, call in calls() if rule == "load"]
    assert len(loads) == 1
    label, *names = (argument.value for argument in loads[0].args)
    assert label == "@rules_python//python:defs.bzl"
    assert set(names) == RULES


def test_every_file_has_a_target_and_every_target_its_files():
    listed = {source for target in targets().values() for source in target["srcs"]}
    assert source_files() - listed == set(), "files without a target in BUILD"
    assert listed - source_files() == set(), "files named in BUILD that do not exist"


def test_every_test_file_has_a_test_target_of_its_own():
    tests = [t["srcs"][0] for t in targets().values() if t["rule"] == "py_test"]
    files = {file for file in source_files() if file.rpartition("/")[2].startswith("test_")}
    assert sorted(tests) == sorted(files)


def test_binaries_are_the_files_with_a_main():
    binaries = {t["srcs"][0] for t in targets().values() if t["rule"] == "py_binary"}
    mains = {
        file
        for file in source_files()
        if not file.startswith("tests/") and "__main__" in (ROOT / file).read_text()
    }
    assert binaries == mains


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
