"""Commands need no home: they go without a cache, and expand no path into one that is not there."""

import os
import pwd

import jax
import pytest
from etils import epath

import can_jax
from can_jax.checkpoint.manager import Checkpointer
from can_jax.cli import running
from can_jax.data.sources.synthetic_shapes import open_shapes
from can_jax.utils.errors import UserError
from can_jax.utils.files import expand_home, user_cache


@pytest.fixture
def no_name(monkeypatch):
    """No user has an entry in the list of users, as in a container that runs as any number."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


@pytest.fixture
def cache_folder(monkeypatch):
    """The folder that a command has JAX keep its programs in, None without any."""
    given = {}
    monkeypatch.setattr(jax.config, "update", given.__setitem__)

    def find():
        running.keep_compiled()
        return given.get("jax_compilation_cache_dir")

    return find


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_no_home(no_name, monkeypatch, cache_folder, home):
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    assert user_cache() is None and cache_folder() is None
    assert len(open_shapes(20, (16, 16), 3, "train").images) == 20


def test_home_that_is_not_there(no_name, monkeypatch, cache_folder):
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    assert cache_folder() is None
    assert len(open_shapes(20, (16, 16), 3, "train").images) == 20


def test_home_that_cannot_be_written(no_name, monkeypatch, cache_folder, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().startswith(str(tmp_path / ".cache" / "can_jax"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    monkeypatch.setattr(jax.config, "update", lambda name, value: pytest.fail("of no use"))
    running.keep_compiled()


def test_cache_that_is_named(no_name, monkeypatch, tmp_path):
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "can_jax"


def test_checkpoint_whose_owner_has_no_name(no_name, tmp_path):
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=1)
    checkpoints.save(3, {"weights": jax.numpy.ones(3)}, {})
    checkpoints.wait()
    checkpoints.close()
    found = Checkpointer(epath.Path(tmp_path), keep_last=None, read_only=True)
    assert (tmp_path / "3" / "seal.json").exists() and found.latest_valid_step() == 3


def test_home_of_a_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    root = pwd.getpwnam("root").pw_dir
    assert expand_home("~root/x") == f"{root}/x"
    for path in ("x/~", "gs://b/~", "./~/x", "", "/~"):
        assert expand_home(path) == path
    for path in ("~no_such_user/x", "~~"):
        with pytest.raises(UserError, match=rf"{path}: there is no user .* write \./{path}"):
            expand_home(path)


def test_home_in_the_path_of_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/none does not exist"):
        can_jax.load("~/none")
    with pytest.raises(UserError, match=f"{tmp_path}/none does not exist"):
        can_jax.load(tmp_path / "none")
