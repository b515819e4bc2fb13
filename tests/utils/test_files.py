"""A file is replaced as a whole, or not at all."""

import os
from pathlib import Path

import pytest
from etils import epath

from can_jax.utils.errors import UserError
from can_jax.utils.files import check_directory, check_file, distinct_names, replace_text, replacing


@pytest.mark.parametrize("kind", [Path, epath.Path])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, kind, error):
    path = kind(tmp_path) / "a.json"
    replace_text(path, "old")

    def interrupted():
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_writers_with_their_own_suffix_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path, ".1") as one, replacing(path, ".2") as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_place_is_checked_without_a_trace(tmp_path, monkeypatch):
    for check in (check_directory, check_file):
        check(tmp_path / "a" / "b")
        check("gs://bucket/a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="--workdir=.*link is a file"):
        check_directory(tmp_path / "link", "--workdir=")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    for check in (check_directory, check_file):
        with pytest.raises(UserError, match="a/b cannot be written: Permission denied for"):
            check(tmp_path / "a" / "b")


def test_names_of_paths_are_the_shortest_ends_that_differ():
    assert distinct_names(["/r/a", "s/b/"]) == ["a", "b"]
    assert distinct_names(["/r/a/e", "/r/b/e", "gs://t/b/f"]) == ["a/e", "b/e", "b/f"]
    assert distinct_names(["/r/a", "/r/a"]) == ["/r/a", "/r/a"]
