"""Asynchronous, atomic checkpoints with Orbax."""

import contextlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from can_jax.checkpoint.checksums import find_damage, saved_shapes, write_checksums
from can_jax.checkpoint.retention import Retention, remove_remains
from can_jax.checkpoint.scopes import ocp, quiet_orbax, small_arrays_whole
from can_jax.distributed.runtime import gather
from can_jax.distributed.sharding_rules import named_leaves
from can_jax.utils.errors import UserError, one_line, reason_of
from can_jax.utils.quiet import quiet_threads

FAILED_SAVES = 3  # the number of failures in a row at which a run stops
TEMPORARY = "temporary"  # an empty file that marks a checkpoint to be replaced by the next one


class Restored(NamedTuple):
    """The content of a restored checkpoint.

    Attributes:
        step: The step of the checkpoint.
        state: The restored train state, or the requested part of it.
        run: The progress of the run as a JSON-serializable dict.
    """

    step: int
    state: Any
    run: dict[str, Any]


class _OtherModel(Exception):
    """The error raised if the arrays of a checkpoint do not match the configured model."""


class Checkpointer:
    """The checkpoints of one run, in folders named by step.

    Args:
        directory: The folder of the checkpoints; created if missing, unless ``read_only``.
        keep_last: The number of latest regular checkpoints to retain; None for all.
        keep_every_steps: Checkpoints whose step is a multiple of this number are also retained;
            None for off.
        read_only: Whether to leave the directory unchanged, because another run may write to it.
        check: A function called before a save is finalized and before files of a failed save are
            removed. An error raised by ``check`` prevents finalizing the save or removing files.

    Raises:
        UserError: The directory cannot be listed or created.
    """

    def __init__(
        self,
        directory: epath.Path,
        keep_last: int | None,
        keep_every_steps: int | None = None,
        read_only: bool = False,
        check: Callable[[], None] = lambda: None,
    ):
        # Orbax requires an absolute path. A bucket's URL is one, and `resolve` would break it.
        self._directory = directory if "://" in str(directory) else directory.resolve()
        self._saving = self._failures = 0
        self._read_only, self._check = read_only, check
        self._shapes: dict[str, list[int]] = {}
        self._refused: dict[int, str] = {}  # reasons by step
        self._retention = Retention(keep_last, keep_every_steps)
        with contextlib.ExitStack() as scope:
            scope.enter_context(quiet_orbax())
            if not read_only:
                scope.enter_context(quiet_threads())
                scope.enter_context(small_arrays_whole())
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._retention,
                enable_async_checkpointing=not read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,  # of interrupted saves
                read_only=read_only,
                async_options=None
                if read_only
                else ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            )
            try:
                self._manager = ocp.CheckpointManager(self._directory, options=options)
            except OSError as error:
                raise UserError(f"{self._directory} cannot be read: {reason_of(error)}") from error
            self._scope = scope.pop_all()  # process-wide changes until `close`
        steps = () if read_only else self._manager.all_steps()
        marked = {step for step in steps if (self._directory / str(step) / TEMPORARY).exists()}
        self._retention.temporary.update(marked)

    @property
    def latest_step(self) -> int | None:
        """The step of the latest complete checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def newest(self, up_to: int) -> int | None:
        """Return the step of the latest checkpoint at or before step ``up_to``, or None."""
        return max((step for step in self._manager.all_steps() if step <= up_to), default=None)

    def set_aside_after(self, step: int, reason: str) -> None:
        """Move checkpoints after ``step`` to ``refused_checkpoints/``, and log why. Collective."""
        for later in self._manager.all_steps():
            if later > step and jax.process_index() == 0:
                self._set_aside(later, reason)
        self._settle()

    def set_aside_refused(self) -> None:
        """Move all checkpoints that `latest_valid_step` or `restore` has rejected.

        The checkpoints are moved to ``refused_checkpoints/``. Call this when the run is certain to
        resume. Collective: every process must call this.
        """
        refused, self._refused = self._refused, {}
        for step, reason in refused.items():
            if jax.process_index() == 0:
                self._set_aside(step, reason)
        self._settle()

    def latest_valid_step(self) -> int | None:
        """Return the latest step whose checksums verify, or None if there are no checkpoints.

        Damaged checkpoints after the returned step are rejected; see `set_aside_refused`.
        Collective: every process must call this.

        Raises:
            UserError: All checkpoints are damaged, or a checkpoint cannot be read.
        """
        latest, refusal = -1, ""
        if jax.process_index() == 0:
            try:
                latest = self._verify_newest()
            except UserError as error:
                latest, refusal = -2, str(error)
        latest = int(gather("newest checkpoint", np.int64(latest))[0])
        if latest == -2:
            raise UserError(
                refusal or "process 0 found no valid checkpoint; see its log for the reason"
            )
        return None if latest < 0 else latest

    def check_step(self, step: int) -> None:
        """Check that a checkpoint of the given step exists and that its checksums verify.

        Collective: every process must call this.

        Raises:
            UserError: There is no checkpoint of this step, or it is damaged.
        """
        refusal = ""
        if jax.process_index() == 0:
            steps = sorted(self._manager.all_steps())
            if step not in steps:
                there = f"there are {', '.join(map(str, steps))}" if steps else "there are none"
                refusal = f"{self._directory} has no checkpoint of step {step}; {there}"
            elif reason := find_damage(self._directory / str(step)):
                path = self._directory / str(step)
                refusal = f"checkpoint {path} is damaged: {reason}; give another step"
        if gather("checkpoint of a step", np.int32(bool(refusal)))[0]:
            raise UserError(refusal or f"process 0 rejected checkpoint {step}; see its log")

    def _verify_newest(self) -> int:
        """Return the latest step whose checksums verify; -1 if there are no checkpoints."""
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            reason = find_damage(self._directory / str(step))
            if reason is None:
                for later, why in damaged.items():
                    self._refuse(later, f"is damaged: {why}")
                return step
            damaged[step] = reason
        if damaged:
            latest = max(damaged)
            raise UserError(
                f"no checkpoint in {self._directory} is valid; that of step {latest} is "
                f"damaged: {damaged[latest]}. Nothing was changed; restore a backup, or give "
                "another --workdir for a new run"
            )
        return -1

    def save(self, step: int, state: Any, run: dict[str, Any], temporary: bool = False) -> None:
        """Start to save a checkpoint asynchronously. Collective: every process must call this.

        This blocks until the previous save is finished. If ``step`` is the latest saved step,
        nothing is saved. If the save fails, for example on a full disk, a warning is logged.

        Args:
            step: The step at which ``state`` was reached.
            state: The state to save, as a pytree of `jax.Array`.
            run: The progress of the run as a JSON-serializable dict.
            temporary: Whether to delete this checkpoint after the next save; see `Retention`.

        Raises:
            UserError: Three saves in a row have failed.
        """
        self.wait()
        if step == self.latest_step:
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        self._saving, self._shapes = step, shapes_of(state)
        if temporary:
            self._retention.temporary.add(step)
        try:
            self._check_space(state)
            self._manager.save(step, args=items)
            failure = None
        except Exception as error:  # Orbax re-raises errors of any kind from its threads
            failure = error
        self._agree(failure)

    def restore(self, step: int, abstract: Any, *, partial: bool = False) -> Restored:
        """Restore the latest checkpoint with the shapes of ``abstract``, at or before ``step``.

        Checkpoints after the restored one, up to ``step``, are rejected because their shapes
        differ; see `set_aside_refused`. Collective: every process must call this.

        Args:
            step: The step of the latest checkpoint to consider.
            abstract: The state as a pytree of `jax.ShapeDtypeStruct` with shardings to restore to.
            partial: Whether ``abstract`` is only a part of the saved state; the rest is not read.

        Raises:
            UserError: No checkpoint matches the model, or a checkpoint cannot be restored.
        """
        refused: dict[int, str] = {}
        for candidate in sorted(self._manager.all_steps(), reverse=True):
            if candidate > step:
                continue
            try:
                state, run = self._read(candidate, abstract, partial)
            except _OtherModel as error:
                refused[candidate] = str(error)
                continue
            for other, reason in refused.items():
                self._refuse(other, reason)
            return Restored(candidate, state, run)
        path = self._directory / str(step)
        raise UserError(
            f"checkpoint {path} {refused[step]}; give another --workdir, or the configuration "
            "with which the checkpoint was written"
        )

    def wait(self) -> bool:
        """Block until pending saves are finished. Collective: every process must call this.

        Returns:
            False if the latest save failed, either in `save` or in the background; else True.

        Raises:
            UserError: Three saves in a row have failed.
        """
        try:
            self._manager.wait_until_finished()
            failure = None
        except Exception as error:  # as in `save`
            failure = error
        if not self._agree(failure):
            return False
        if self._saving == self.latest_step:
            self._failures = 0
        return not self._failures

    def _agree(self, failure: Exception | None) -> bool:
        """Return whether a save succeeded in all processes, and report a failure. Collective."""
        if not gather("a save", np.int32(failure is not None)).any():
            return True
        self._report_failure(failure or OSError("another process failed to write its arrays"))
        return False

    def close(self) -> None:
        """Wait for the pending saves of this process, and close the Orbax manager.

        This method is not collective, since a process can end alone, for example on Ctrl-C. Call
        `wait` before `close`, so that every process detects a failed save.
        """
        with self._scope:
            try:
                self._manager.wait_until_finished()
            except Exception as error:  # as in `save`
                self._report_failure(error)
            self._manager.close()

    def _read(self, step: int, abstract: Any, partial: bool) -> tuple[Any, dict[str, Any]]:
        saved, wanted = saved_shapes(self._directory / str(step)), shapes_of(abstract)
        if saved is not None:
            for name in sorted(wanted if partial else saved.keys() | wanted.keys()):
                if saved.get(name) != wanted.get(name):
                    raise _OtherModel(
                        f"belongs to another model: {name} is {saved.get(name, 'missing')} in the "
                        f"checkpoint and {wanted.get(name, 'missing')} in this configuration"
                    )
        arguments: Any = ocp.args.StandardRestore(abstract)
        if partial:
            targets = ocp.checkpoint_utils.construct_restore_args(abstract)
            arguments = ocp.args.PyTreeRestore(abstract, targets, partial_restore=True)
        items = ocp.args.Composite(state=arguments, run=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # Orbax raises errors of any kind
            raise UserError(
                f"checkpoint {self._directory / str(step)} cannot be restored: "
                f"{one_line(error)[:300]}. To use the previous checkpoint, move this one to "
                "another folder"
            ) from error
        return restored.state, restored.run

    def _write_checksums(self) -> None:
        """Write the checksums of a checkpoint before Orbax renames its folder to the final name."""
        if jax.process_index():
            return
        self._check()
        names = (f"{self._saving}.orbax-checkpoint-tmp", str(self._saving))
        folder = next(p for p in (self._directory / name for name in names) if p.exists())
        if self._saving in self._retention.temporary:
            (folder / TEMPORARY).write_text("")
        write_checksums(folder, self._shapes)

    def _refuse(self, step: int, reason: str) -> None:
        """Record that a checkpoint is rejected; in read-only mode, also log a warning."""
        self._refused[step] = reason
        if self._read_only:
            path = self._directory / str(step)
            logging.warning("checkpoint %s %s; an earlier valid one is used", path, reason)

    def _set_aside(self, step: int, reason: str) -> None:
        """Move a checkpoint to ``refused_checkpoints/``, so that its step can be saved again."""
        folder = self._directory.parent / "refused_checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / str(step)
        while target.exists():
            target = folder / f"{target.name}_again"
        (self._directory / str(step)).rename(target)
        logging.warning(
            "checkpoint %s %s; it was moved to %s, and an earlier valid one is used",
            self._directory / str(step), reason, target,
        )  # fmt: skip

    def _check_space(self, state: Any) -> None:
        """Raise `OSError` if the directory is not writable or the local disk has too little space.

        Without this check, Orbax would block for a long time and log many messages. Collective:
        every process must call this.
        """
        if "://" in str(self._directory):
            return
        shards = (s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards)
        needed = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        refusal = ""
        try:
            trial = self._directory / f"trial_{jax.process_index()}"
            trial.mkdir(exist_ok=True)
            trial.rmdir()
            free = shutil.disk_usage(self._directory).free
            if needed > free:
                refusal = f"{needed / 1e6:.1f} MB are needed, but {free / 1e6:.1f} MB are free"
        except OSError as error:
            refusal = one_line(error).removeprefix("OSError: ")
        if gather("space for a checkpoint", np.int32(bool(refusal))).any():
            raise OSError(refusal or "another process cannot write its arrays; see its log")

    def _settle(self) -> None:
        """Wait until process 0 has moved checkpoints, then reload the list of steps. Collective."""
        gather("checkpoints", np.int32(0))
        self._manager.reload()

    def _report_failure(self, error: Exception) -> None:
        """Log that a checkpoint could not be written, and remove its incomplete files.

        Raises:
            UserError: Three saves in a row have failed.
        """
        self._check()  # Another run that has taken the lock may own the incomplete files.
        self._failures += 1
        with contextlib.suppress(OSError):  # The failed save may mean that nothing can be read.
            self._manager.reload()
            if jax.process_index() == 0:
                for left in self._directory.glob("*.orbax-checkpoint-tmp"):
                    remove_remains(left)
        last = "none" if self.latest_step is None else f"step {self.latest_step}"
        message = (
            f"the checkpoint of step {self._saving} could not be written: "
            f"{one_line(error)[:200]}; the last saved one: {last}"
        )
        if self._failures >= FAILED_SAVES:
            raise UserError(
                f"{message}. This is the third failure in a row: free disk space or make the "
                "folder writable, then re-run the command to resume"
            )
        logging.warning("%s; the run continues", message)


def shapes_of(tree: Any) -> dict[str, list[int]]:
    """Return a dict from the path of each array in a pytree to its shape."""
    return {name: list(leaf.shape) for name, leaf in named_leaves(tree).items()}
