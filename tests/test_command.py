import os
import subprocess
import sys

import pytest

from tests.runs import ROOT

# Compiles for longer than what is not worth keeping.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from can_jax import command

def main():
    def f(x):
        for i in range(200):
            x = jnp.sin(x @ x.T + i) + jnp.sort(x)
        return x.sum()
    print(float(jax.jit(f)(jnp.ones((8, 8)))))

command.run(main, "")
"""


def kept(**places):
    environment = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True,
        env=environment | {"JAX_PLATFORMS": "cpu"} | places,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return float(done.stdout)


def test_compiled_programs_are_kept_for_the_next_start(tmp_path):
    first = kept(XDG_CACHE_HOME=str(tmp_path))
    (folder,) = (tmp_path / "can_jax").iterdir()
    programs = sorted(path.name for path in folder.glob("jit_*-cache"))
    assert folder.name.startswith("compiled-") and programs
    assert kept(XDG_CACHE_HOME=str(tmp_path)) == first
    assert sorted(path.name for path in folder.glob("jit_*-cache")) == programs


@pytest.mark.parametrize(
    "none", [{"JAX_COMPILATION_CACHE_DIR": ""}, {"XDG_CACHE_HOME": "/proc/no"}]
)
def test_there_may_be_no_place_for_them(none, tmp_path):
    kept(**({"XDG_CACHE_HOME": str(tmp_path)} | none))
    assert not list(tmp_path.iterdir())
