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

os.environ["JAX_PLATFORMS"] = "cpu"  # also of commands, whatever else this machine has
jax.config.update("jax_platforms", "cpu")  # JAX is imported, and has read the variable
# Eight devices on one CPU: what holds on a mesh is tested on a mesh.
jax.config.update("jax_num_cpu_devices", 8)
# Most of the time goes into compiling: do it lightly, and each program once, for commands too.
OWN = Path(__file__).parents[1] / ".pytest_cache"
os.environ["XDG_CACHE_HOME"] = str(OWN)  # and not the user's
COMPILING = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": str(OWN / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in COMPILING.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
# What is not optimised compiles twice as fast by XLA's older emitters, and then a fifth faster as
# one module, since the cores are shared by as many workers. A version without such a flag would end
# with it, so it is asked first, once for all workers.
LIGHTLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {LIGHTLY}"
    trial = [sys.executable, "-c", "import jax; jax.numpy.zeros(3)"]
    told = subprocess.run(trial, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True)
    if told.returncode == 0:
        os.environ["XLA_FLAGS"] = flags
# Tracing makes many objects: collect them as seldom as commands do, and no module again and again.
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
