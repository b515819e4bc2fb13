import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from can_jax.checkpoint import checksums, manager
from can_jax.checkpoint.identity import has_checkpoints
from can_jax.checkpoint.manager import Checkpointer
from can_jax.distributed.mesh import make_mesh
from can_jax.train.run import finish
from can_jax.train.step import abstract_state, make_step
from can_jax.utils.errors import UserError
from tests.data.test_dirty import bound_by_permissions
from tests.helpers.configs import small_config


def abstract_of(devices=1, **changes):
    """Return the shapes of a train state, and their shardings over so many devices."""
    config = small_config(**{"model__width": 32, "model__heads": 4} | changes)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    return abstract_state(make_step(config, lambda _: 0.0), mesh)


def filled(abstract, seed):
    """Return random numbers in the shapes of a state, which takes no compilation."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        values = np.asarray(100 * rng.normal(size=leaf.shape)).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(fill, abstract)


SMALL = {"x": jnp.arange(3)}  # a state, where its content is not the subject


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_state_comes_back_on_another_mesh(tmp_path):
    state = filled(abstract_of(8, mesh__data=2, mesh__fsdp=4), 0)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(state)} == {8}
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=2)
    checkpoints.save(5, state, {"seconds": 1.5})
    checkpoints.wait()
    step, restored, run = checkpoints.restore(5, abstract_of(devices=2))
    assert (step, run) == (5, {"seconds": 1.5})
    assert_equal(state, restored)
    assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(restored)} == {2}
    checkpoints.close()


def test_process_that_ends_alone_closes_without_the_others(tmp_path, monkeypatch):
    """The others may be in a collective of their own, for which they would take this one's."""
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=2)
    checkpoints.save(1, SMALL, {})
    monkeypatch.setattr(manager, "gather", None)
    checkpoints.close()
    assert steps_in(tmp_path) == [1]


def test_newest_are_kept_and_some_for_ever(tmp_path):
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=2, keep_every_steps=4)
    for step in range(1, 8):
        checkpoints.save(step, SMALL, {})
        checkpoints.wait()
    checkpoints.close()
    assert steps_in(tmp_path) == [4, 6, 7]


def test_checkpoint_by_time_is_replaced_by_the_next(tmp_path):
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=2)
    kept = []
    for step in range(1, 7):
        checkpoints.save(step, SMALL, {}, temporary=step in (2, 3, 6))
        checkpoints.wait()
        kept.append("".join(map(str, steps_in(tmp_path))))
    checkpoints.close()
    assert kept == ["1", "12", "13", "14", "45", "456"]
    again = Checkpointer(epath.Path(tmp_path), keep_last=2)  # after a kill
    again.save(7, SMALL, {})
    again.close()
    assert steps_in(tmp_path) == [5, 7]


def test_checkpoint_gets_no_name_once_another_run_has_the_directory(tmp_path):
    def check():
        if lost:
            raise UserError("was taken over")

    lost: list[bool] = []
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=3, check=check)
    checkpoints.save(1, SMALL, {})
    checkpoints.wait()
    lost.append(True)
    other = tmp_path / "9.orbax-checkpoint-tmp"
    other.mkdir()
    checkpoints.save(2, SMALL, {})
    with pytest.raises(UserError, match="was taken over"):
        checkpoints.wait()
    assert steps_in(tmp_path) == [1]
    assert other.exists()  # another run's, which only looks like what is left of a write


@pytest.mark.parametrize("changes", [{"model__width": 40}, {"model__depth": 2}])
def test_checkpoint_of_another_model_is_refused(three, changes):
    checkpoints = Checkpointer(epath.Path(three), keep_last=None, read_only=True)
    with pytest.raises(UserError, match="checkpoint .*3 belongs to another model: ") as caught:
        checkpoints.restore(3, abstract_of(**changes))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.fixture(scope="module")
def abstract():
    return abstract_of()


@pytest.fixture(scope="module")
def three(abstract, tmp_path_factory):
    """A folder with the checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    checkpoints = Checkpointer(epath.Path(folder), keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(step, filled(abstract, step), {"n": step})
    checkpoints.close()
    return folder


def lose(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lose, "is missing"), (cut, "bytes instead of"), (turn, "does not match its checksum")],
)
def test_damage_to_any_file_is_seen_and_the_one_before_it_used(
    three, tmp_path, damage, reason, caplog
):
    """One bit is enough, in a file that the reader itself would believe."""
    names = [p.relative_to(three / "3") for p in (three / "3").rglob("*") if p.is_file()]
    kept = {"seal.json", "commit_success.txt", "_CHECKPOINT_METADATA"}
    names = [name for name in names if name.name not in kept]
    assert len(names) > 10
    for number, name in enumerate(names):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(three, folder)
        damage(folder / "3" / name)
        caplog.clear()
        checkpoints = Checkpointer(epath.Path(folder), keep_last=3)
        assert checkpoints.latest_valid_step() == 2, name
        assert checkpoints.latest_step == 3 and not caplog.text  # the run may yet be refused
        checkpoints.set_aside_refused()
        assert f"{name} " in caplog.text and reason in caplog.text
        assert (folder.parent / "refused_checkpoints" / "3" / "seal.json").exists()
        assert checkpoints.latest_step == 2
        checkpoints.close()


def test_where_all_are_damaged_nothing_is_changed(three, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    for step in (1, 2, 3):
        lose(folder / str(step) / "run" / "metadata")
    checkpoints = Checkpointer(epath.Path(folder), keep_last=3)
    with pytest.raises(UserError, match="no checkpoint in .* that of step 3 is damaged: run/meta"):
        checkpoints.latest_valid_step()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_cannot_be_read_now_is_not_damaged(three, tmp_path, monkeypatch, number):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)

    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(checksums, "_size_and_sum", fail)
    checkpoints = Checkpointer(epath.Path(folder), keep_last=3)
    with pytest.raises(UserError, match=f"3 cannot be read: {os.strerror(number)}. Nothing was"):
        checkpoints.latest_valid_step()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "lists no files"),
        ('{"files": {}}', "lists no files"),
        ('{"files": {"a": 3}}', "holds no size and checksum for a"),
        ('{"files": {"', "cannot be parsed"),
        (b"\xff\xfe", "cannot be parsed"),
        (None, "is missing: the save was not completed"),
    ],
)
def test_without_checksums_a_checkpoint_is_not_trusted(three, tmp_path, content, reason, caplog):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    if content is None:
        (folder / "3/seal.json").unlink()
    else:
        (folder / "3/seal.json").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    assert Checkpointer(epath.Path(folder), keep_last=3, read_only=True).latest_valid_step() == 2
    assert f"seal.json {reason}" in caplog.text


def test_folder_that_cannot_be_read_is_one_line(tmp_path):
    checkpoints = Checkpointer(epath.Path(tmp_path / "checkpoints"), keep_last=3)
    checkpoints.save(1, SMALL, {})
    checkpoints.wait()
    (tmp_path / "checkpoints").chmod(0)
    message = "checkpoints cannot be read: Permission denied"
    with bound_by_permissions():
        with pytest.raises(UserError, match=message):
            has_checkpoints(epath.Path(tmp_path))
        with pytest.raises(UserError, match=message):
            Checkpointer(epath.Path(tmp_path / "checkpoints"), keep_last=3)
        checkpoints.save(2, SMALL, {})  # a warning
    (tmp_path / "checkpoints").chmod(0o755)
    checkpoints.save(3, SMALL, {})
    assert checkpoints.wait() and checkpoints.latest_step == 3
    checkpoints.close()


def test_what_a_kill_left_of_a_save_is_no_checkpoint_and_is_removed(three, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    reader = Checkpointer(epath.Path(folder), keep_last=None, read_only=True)
    assert reader.latest_step == reader.latest_valid_step() == 3
    reader.close()
    assert (folder / "4.orbax-checkpoint-tmp").exists()
    checkpoints = Checkpointer(epath.Path(folder), keep_last=3)
    assert checkpoints.latest_step == 3
    checkpoints.save(5, SMALL, {})
    checkpoints.close()
    assert not (folder / "4.orbax-checkpoint-tmp").exists()


def test_newest_that_fits_is_restored(three, abstract, tmp_path, caplog):
    """A checkpoint of another model lies among ours."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(three, folder)
    checkpoints = Checkpointer(epath.Path(folder), keep_last=9)
    checkpoints.save(7, SMALL, {})
    checkpoints.wait()
    step, restored, run = checkpoints.restore(checkpoints.latest_valid_step(), abstract)
    checkpoints.set_aside_refused()
    assert (step, run) == (3, {"n": 3})
    assert_equal(filled(abstract, 3), restored)
    assert "checkpoint" in caplog.text and "7 " in caplog.text and "was moved to" in caplog.text
    assert checkpoints.latest_step == 3 and (tmp_path / "refused_checkpoints" / "7").is_dir()


def test_last_save_that_fails_at_once_is_an_error(tmp_path, monkeypatch):
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=1)
    checkpoints.save(1, SMALL, {})
    finish(1, True, checkpoints)
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    with monkeypatch.context() as patch:
        patch.setattr(manager.shutil, "disk_usage", lambda _: full)
        checkpoints.save(2, SMALL, {})
    for complete in (True, False):
        with pytest.raises(UserError, match="step 2 could not be saved"):
            finish(2, complete, checkpoints)
    checkpoints.save(3, SMALL, {})
    finish(3, True, checkpoints)
    checkpoints.close()


def test_saving_a_step_twice_is_harmless(tmp_path, caplog):
    checkpoints = Checkpointer(epath.Path(tmp_path), keep_last=1)
    checkpoints.save(1, SMALL, {"n": 1})
    checkpoints.wait()
    checkpoints.save(1, jax.tree.map(jnp.zeros_like, SMALL), {"n": 2})
    checkpoints.wait()
    step, restored, run = checkpoints.restore(1, SMALL)
    assert (step, run) == (1, {"n": 1}) and "could not be written" not in caplog.text
    assert_equal(restored, SMALL)
    checkpoints.close()
