"""The files around the code: for continuous integration, containers and citations."""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import can_jax
from tests.helpers.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_continuous_integration_runs_the_test_command_on_every_supported_python():
    job = read(".github/workflows/test.yml")["jobs"]["test"]
    assert {"run": ".ci/run"} in job["steps"]
    supported = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert job["strategy"]["matrix"]["python"] == supported
    constrained = {path.stem for path in (ROOT / "constraints").glob("py???.txt")}
    assert constrained == {f"py{version.replace('.', '')}" for version in supported}


@pytest.mark.parametrize(
    "target",
    ["quickstart", "test", "test-trackers", "test-torch", "test-remote", "test-gpu", "docs"],
)
def test_targets_install_extras_that_exist(target):
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target, f"PYTHON={sys.executable}"], cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    installs = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert installs
    for line in installs:
        (package,) = (word for word in shlex.split(line) if word.startswith(".["))
        extras = package.removeprefix(".[").removesuffix("]").split(",")
        assert set(extras) <= PROJECT["optional-dependencies"].keys()


def test_hooks_run_tools_of_the_test_environment():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    for hook in repository["hooks"]:
        program = Path(sys.executable).with_name(hook["entry"].split()[0])
        assert program.exists(), hook["id"]


def test_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert citation["version"] == can_jax.__version__
    assert citation["license"] == PROJECT["license"]
    assert "2210.16870" in citation["references"][0]["identifiers"][0]["value"]


def test_dockerfile_is_sound():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint has no wheel for this machine")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
