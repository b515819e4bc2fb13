import os
import subprocess
import sys

import jax
import pytest

from can_jax.cli import process
from can_jax.cli.process import NEW_OBJECTS, TUNABLES, on_demand
from can_jax.cli.running import keep_compiled
from tests.helpers.runs import ROOT, main_in_process

# Compiles for longer than what is not worth keeping.
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from can_jax.cli.command import Command
from can_jax.cli.running import run

COMMAND = Command("")

@COMMAND.runs
def main():
    def f(x):
        for i in range(200):
            x = jnp.sin(x @ x.T + i) + jnp.sort(x)
        return x.sum()
    print(float(jax.jit(f)(jnp.ones((8, 8)))))

run(main)
"""


def kept(**places):
    environment = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True,
        env=environment | {"JAX_PLATFORMS": "cpu"} | places,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return float(done.stdout)


def test_control_characters_are_not_printed(tmp_path):
    """A file's name must not clear the terminal, or be taken for another line."""
    done = main_in_process(
        "can_jax.main", "--config=/no/\x1b[2Jred\nWARNING: x.py", f"--workdir={tmp_path}"
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "/no/\\x1b[2Jred\\nWARNING: x.py" in done.stderr


def test_compiled_programs_are_kept_for_the_next_start(tmp_path):
    first = kept(XDG_CACHE_HOME=str(tmp_path))
    (folder,) = (tmp_path / "can_jax").iterdir()
    programs = sorted(path.name for path in folder.glob("jit_*-cache"))
    assert folder.name.startswith("compiled-") and programs
    (folder / "jit_left_by_a_kill-cache").write_bytes(b"half")  # without its time of use
    assert kept(XDG_CACHE_HOME=str(tmp_path)) == first
    assert sorted(path.name for path in folder.glob("jit_*-cache")) == programs


NO_PLACE = [{"JAX_COMPILATION_CACHE_DIR": ""}, {"XDG_CACHE_HOME": "/proc/no"}]


@pytest.mark.parametrize("none", NO_PLACE)
def test_nothing_is_kept_without_a_place(none, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    for name, value in ({"XDG_CACHE_HOME": str(tmp_path)} | none).items():
        monkeypatch.setenv(name, value)
    before = jax.config.jax_compilation_cache_dir
    try:
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir == before
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("none", NO_PLACE)
def test_command_runs_without_a_place(none, tmp_path):
    kept(**({"XDG_CACHE_HOME": str(tmp_path)} | none))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tunables", [None, ""])
def test_a_command_asks_for_huge_pages_unless_told_otherwise_and_seldom_collects(
    tunables, tmp_path
):
    recipe = tmp_path / "tells.py"
    recipe.write_text(
        "import gc, os, sys\n"
        "print(os.environ.get('GLIBC_TUNABLES'), gc.get_threshold()[0], *sys.argv[1:])"
    )
    environment = {n: v for n, v in os.environ.items() if n != TUNABLES}
    done = subprocess.run(
        [sys.executable, "-m", "can_jax.main", f"--config={recipe}"], cwd=ROOT, text=True,
        env=environment | ({} if tunables is None else {TUNABLES: tunables}), capture_output=True,
    )  # fmt: skip
    own = "glibc.malloc.hugetlb=1" if on_demand() else None
    memory = own if tunables is None else tunables
    assert done.stdout.split(" --")[0] == f"{memory} {NEW_OBJECTS}"
    assert f"--config={recipe}" in done.stdout
    assert done.stderr.startswith("error: ")  # and nothing else is wrong with it


def test_huge_pages_are_asked_for_where_there_are_some(monkeypatch, tmp_path):
    enabled = tmp_path / "enabled"
    monkeypatch.setattr(process, "ENABLED", enabled)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    assert not on_demand()
    for text, there in [("always [madvise] never", True), ("always madvise [never]", False)]:
        enabled.write_text(text)
        assert on_demand() == there
    enabled.write_text("always [madvise] never")
    for library in ("glibc 2.34", "musl 1.2.5", None):
        monkeypatch.setattr(os, "confstr", lambda name, library=library: library)
        assert not on_demand()
