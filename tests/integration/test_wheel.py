"""What is installed suffices: recipes, launchers, and a declaration of every imported package."""

import ast
import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from can_jax.config.shipped import KINDS, names_of
from tests.helpers.runs import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_{}('dist'))"
LOAD = """
import can_jax, json
from can_jax.cli.recipe import load
from can_jax.config.shipped import KINDS, find, names_of
recipes = [load(name, kind) for kind in ("recipe", "protocol", "study") for name in names_of(kind)]
load("noise_ablation:loss", "recipe"), load("configs/eval/finetune_imagenet_l.py", "protocol")
assert "ranges" in KINDS and find("quickstart", "ranges", "").is_file()
print(json.dumps([can_jax.__file__, {kind: names_of(kind) for kind in KINDS}, len(recipes)]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of this checkout, in a folder with the name of the package."""
    source = tmp_path_factory.mktemp("source") / "can_jax"
    for name in ("can_jax", "configs", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


def build(source, kind):
    """Build a wheel without the network, and return its path."""
    program = [sys.executable, "-c", BUILD.format(kind)]
    done = subprocess.run(program, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source):
    return build(source, "wheel")


def test_editable_installation_is_found_beside_the_checkout(source, tmp_path):
    with zipfile.ZipFile(build(source, "editable")) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import site; site.addsitedir({str(tmp_path)!r})\nimport can_jax\nprint(can_jax.load)"
    )
    # Without other packages. The checkout is a folder named can_jax in the current one.
    command = [sys.executable, "-S", "-c", program]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=source.parent, env=clean, capture_output=True, text=True)
    assert done.stdout.startswith("<function load"), done.stderr


def test_wheel_holds_all_that_the_package_uses(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info for info in archive.infolist()}
        metadata = email.message_from_bytes(
            archive.read(next(name for name in files if name.endswith("/METADATA")))
        )
    ours = {
        str(path.relative_to(ROOT)).removeprefix("can_jax/")
        for folder in ("can_jax", "configs", "launch") for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip
    assert {f"can_jax/{name}" for name in ours} <= files.keys()
    assert {name.split("/")[0].split("-")[0] for name in files} == {"can_jax"}  # none else's place
    for name, info in files.items():
        executable = info.external_attr >> 16 & 0o111
        assert bool(executable) == name.endswith(".sh"), name
    declared = {re.split(r"[^\w-]", d)[0] for d in metadata.get_all("Requires-Dist")}
    assert {"scipy", "ml_dtypes", "jax"} <= declared


def test_recipes_are_found_by_name_from_a_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "away").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path / "away", capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    place, names, recipes = json.loads(done.stdout)
    assert place == str(tmp_path / "site" / "can_jax" / "__init__.py")
    assert names == {kind: names_of(kind) for kind in KINDS}
    assert recipes == sum(len(names_of(kind)) for kind in ("recipe", "protocol", "study"))


# Modules that import a package of the extra `cpu`; they are imported when a chart is drawn.
DRAWN = {
    ROOT / "can_jax" / name for name in ("evaluate/reports/charts.py", "study/plots.py")
}  # fmt: skip


def test_requirements_list_the_dependencies_and_the_extra_of_the_cpu():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    declared = project["dependencies"] + project["optional-dependencies"]["cpu"]
    assert sorted(line for line in lines if line[:1] != "#") == sorted(declared)
    for name in ("cuda", "cuda12", "tpu"):
        first = project["optional-dependencies"][name][0]
        assert first.startswith(("can_jax[cpu]", "can_jax[cpu,"))


def imported(path):
    """The packages that a file imports: at its top, and anywhere."""

    def names(node):
        if isinstance(node, ast.Import):
            return {alias.name.split(".")[0] for alias in node.names}
        own = isinstance(node, ast.ImportFrom) and not node.level
        return {node.module.split(".")[0]} if own else set()

    tree = ast.parse(path.read_text())
    everywhere = set().union(*(names(node) for node in ast.walk(tree)))
    return set().union(*(names(node) for node in tree.body)), everywhere


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def distributions(entries):
        found = {re.split(r"[\[\s<>=;!~]", entry)[0] for entry in entries}
        return {name.lower().replace("_", "-") for name in found}

    bare = distributions(project["dependencies"])
    needed = bare | distributions(extras["cpu"])
    names = ("torch", "parquet", "hub", "remote", "ray", "zstd", "wandb", "mlflow", "aim")
    optional = needed.union(*(distributions(extras[name]) for name in names))
    installed = importlib.metadata.packages_distributions()

    def undeclared(modules, declared):
        others = modules - set(sys.stdlib_module_names) - {"can_jax", "setuptools"}
        return {
            module for module in others
            if not declared & {d.lower().replace("_", "-") for d in installed.get(module, [module])}
        }  # fmt: skip

    peer = ROOT / "can_jax" / "benchmark" / "torch_reference.py"  # run only where PyTorch is
    for folder in ("can_jax", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            top, everywhere = imported(path)
            declared = optional if path == peer else needed if path in DRAWN else bare
            assert not undeclared(top, declared), path
            assert not undeclared(everywhere, optional), path
