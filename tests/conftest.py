import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from can_jax.cli.process import NEW_OBJECTS
from tests.helpers.configs import small_config
from tests.helpers.runs import RECIPE, made_once, run
from tests.weights.torch_files import save_torch  # noqa: F401, a fixture

os.environ["JAX_PLATFORMS"] = "cpu"  # for the commands that tests start as processes
jax.config.update("jax_platforms", "cpu")  # JAX read the variable when it was imported
jax.config.update("jax_num_cpu_devices", 8)  # a mesh of eight devices on one CPU
# Compilation takes most of the time of the tests. Programs are therefore compiled with few
# optimizations and cached, also those of commands. With TEST_OPTIMIZED=1 they are optimized.
OWN = Path(__file__).parents[1] / ".pytest_cache"
os.environ["XDG_CACHE_HOME"] = str(OWN)  # tests must not change the user's cache
COMPILING = {
    "jax_disable_most_optimizations": os.environ.get("TEST_OPTIMIZED") != "1",
    "jax_compilation_cache_dir": str(OWN / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in COMPILING.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
# Without optimizations, XLA's older emitters compile twice as fast, and a single module compiles a
# fifth faster, since each core already has a worker. A version of XLA without one of these flags
# would abort, so a trial process tests them once for all workers.
LIGHTLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {LIGHTLY}"
    trial = [sys.executable, "-c", "import jax; jax.numpy.zeros(3)"]
    done = subprocess.run(trial, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True)
    if done.returncode == 0:
        os.environ["XLA_FLAGS"] = flags
# Tracing allocates many objects. As in commands, collections are rare, and the objects of imported
# modules are excluded from them below.
gc.set_threshold(NEW_OBJECTS)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def config() -> ConfigDict:
    return small_config()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """The file of a recipe that trains for seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory) -> tuple[Path, str]:
    """The directory and the output of a whole run of the recipe, as a process on one device. Copy
    the directory before you change it: all tests share it."""
    return made_once(tmp_path_factory, "finished", lambda workdir: run(recipe, workdir))
