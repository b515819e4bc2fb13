"""Checkpoints: written in the background, whole or not at all. The only module that knows Orbax."""

import json
import logging as python_logging
import shutil
import sys
import time
import warnings
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from can_jax.errors import UserError, one_line
from can_jax.parallel.rules import path_name
from can_jax.parallel.runtime import gather

SEAL = "seal.json"  # sums of a checkpoint's files, and the shapes of its arrays
FAILED_SAVES = 3  # in a row, at which a run stops
WRITTEN_LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")  # by Orbax, and not needed
CHUNK = 2**24  # bytes read at a time
REMOVAL_SECONDS = 10.0  # until what a failed write left is left alone
SLICE = 2**23  # bytes; less of an array is not shared out among the devices that have copies of it


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: Any
    run: dict[str, Any]


class Checkpointer:
    """The checkpoints of one run, numbered by step.

    Args:
        directory: where they lie; created if missing.
        keep_last: how many of the newest are kept; None for all.
        keep_every_steps: those of steps divisible by it are kept for ever.
        read_only: leave the directory as it is, which another run may be writing.
    """

    def __init__(
        self,
        directory: epath.Path,
        keep_last: int | None,
        keep_every_steps: int | None = None,
        read_only: bool = False,
    ):
        # Orbax wants an absolute path; that of a bucket is one, which `resolve` does not know.
        self._directory = directory if "://" in str(directory) else directory.resolve()
        self._saving = self._failures = 0
        self._read_only = read_only
        self._shapes: dict[str, list[int]] = {}
        _hush_threads()
        _keep_small_arrays_whole()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every_steps,
            enable_async_checkpointing=not read_only,
            create=not read_only,
            read_only=read_only,
            async_options=None
            if read_only
            else ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, None without any."""
        return self._manager.latest_step()

    def newest(self, up_to: int) -> int | None:
        """The step of the newest checkpoint up to a step; None without any."""
        return max((step for step in self._manager.all_steps() if step <= up_to), default=None)

    def set_aside_after(self, step: int, reason: str) -> None:
        """Move the checkpoints of later steps out of the way. All processes have to ask."""
        for later in self._manager.all_steps():
            if later > step and jax.process_index() == 0:
                self._set_aside(later, reason)
        self._settle()

    def newest_whole(self) -> int | None:
        """The step of the newest checkpoint that is as it was written; None without any.

        What is damaged is moved out of the way, and said. All processes have to ask.
        """
        found = -1
        if jax.process_index() == 0:
            for step in sorted(self._manager.all_steps(), reverse=True):
                reason = self._damage(step)
                if reason is None:
                    found = step
                    break
                self._set_aside(step, f"is damaged: {reason}")
        found = int(gather("newest checkpoint", np.int64(found))[0])
        self._settle()
        return None if found < 0 else found

    def save(self, step: int, state: Any, run: dict[str, Any]) -> None:
        """Begin to save a state, and what JSON can hold of the run. Returns before it is written.

        A step that is saved already is left as it is. Where a checkpoint cannot be written, for
        want of space say, the run is warned and goes on.

        Raises:
            UserError: it is the third in a row that could not be written.
        """
        self.wait()
        if step == self.latest_step:
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        self._saving, self._shapes = step, shapes_of(state)
        try:
            self._demand_room(state)
            self._manager.save(step, args=items)
        except Exception as error:  # Orbax passes on what its threads raised, of any kind
            self._report_failure(error)

    def restore(self, step: int, abstract: Any) -> Restored:
        """The state of a step, placed as ``abstract`` says, and what was saved of the run.

        Where the checkpoint does not fit, the one before it that does is taken, and that is said.

        Args:
            step: of the newest checkpoint to consider.
            abstract: the state's tree with shapes, types and shardings of now.

        Raises:
            UserError: none fits.
        """
        refused: dict[int, str] = {}
        for candidate in sorted(self._manager.all_steps(), reverse=True):
            if candidate > step:
                continue
            try:
                state, run = self._read(candidate, abstract)
            except UserError as error:
                refused[candidate] = str(error)
                continue
            for other, reason in refused.items():
                if jax.process_index() == 0:
                    self._set_aside(other, reason)
            self._settle()
            return Restored(candidate, state, run)
        place = self._directory / str(step)
        raise UserError(
            f"checkpoint {place} {refused[step]}; give another --workdir, or the configuration it "
            "was made with"
        )

    def wait(self) -> bool:
        """Until what was begun is on disk; whether it is.

        Raises:
            UserError: it is the third in a row that could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as in `save`
            self._report_failure(error)
            return False
        if self._saving == self.latest_step:
            self._failures = 0
        return True

    def close(self) -> None:
        """Finish, and let go."""
        self.wait()
        self._manager.close()

    def _read(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        saved, wanted = self._seal_of(step).get("shapes"), shapes_of(abstract)
        if saved is not None:
            for name in sorted(saved.keys() | wanted.keys()):
                if saved.get(name) != wanted.get(name):
                    raise UserError(
                        f"is of another model: {name} is {saved.get(name, 'not there')}, this "
                        f"configuration has {wanted.get(name, 'none')}"
                    )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # of any kind, as it is found damaged or of another model
            raise UserError(f"does not fit this configuration: {one_line(error)[:300]}") from error
        return restored.state, restored.run

    def _seal(self) -> None:
        """Write down what a checkpoint holds, just before it is given its name."""
        if jax.process_index():
            return
        places = (f"{self._saving}.orbax-checkpoint-tmp", str(self._saving))
        folder = next(p for p in (self._directory / name for name in places) if p.exists())
        files = {name: list(_size_and_sum(folder / name)) for name in _files(folder)}
        (folder / SEAL).write_text(json.dumps({"files": files, "shapes": self._shapes}))

    def _seal_of(self, step: int) -> dict[str, Any]:
        """What was written down of a checkpoint; empty if it is from before that was done."""
        place = self._directory / str(step) / SEAL
        return json.loads(place.read_text()) if place.exists() else {}

    def _damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, if anything."""
        folder = self._directory / str(step)
        try:
            for name, (size, crc) in self._seal_of(step).get("files", {}).items():
                if not (folder / name).exists():
                    return f"{name} is missing"
                found = _size_and_sum(folder / name)
                if found[0] != size:
                    return f"{name} has {found[0]} bytes of {size}"
                if found[1] != crc:
                    return f"{name} is not what was written"
        except (OSError, ValueError) as error:
            return one_line(error)
        return None

    def _set_aside(self, step: int, reason: str) -> None:
        """Move a checkpoint that cannot be used out of the way of the next of its step."""
        if self._read_only:
            logging.warning(
                "checkpoint %s %s; the one before it is used", self._directory / str(step), reason
            )
            return
        folder = self._directory.parent / "refused_checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / str(step)
        while place.exists():
            place = folder / f"{place.name}_again"
        (self._directory / str(step)).rename(place)
        logging.warning(
            "checkpoint %s %s; it was moved to %s, and the newest good one before it is used",
            self._directory / str(step), reason, place,
        )  # fmt: skip

    def _demand_room(self, state: Any) -> None:
        """Raise `OSError` if nothing can be written here, or a local disk has no room for what this
        host writes: Orbax would wait long, and say much."""
        if "://" in str(self._directory):
            return
        trial = self._directory / f"trial_{jax.process_index()}"
        trial.mkdir(exist_ok=True)
        trial.rmdir()
        shards = (s for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards)
        needed = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        free = shutil.disk_usage(self._directory).free
        if gather("room for a checkpoint", np.int32(needed > free)).any():
            raise OSError(f"it takes {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free")

    def _settle(self) -> None:
        """Until every process sees the directory as process 0 has left it."""
        gather("checkpoints", np.int32(0))
        self._manager.reload()

    def _report_failure(self, error: Exception) -> None:
        """Say that a checkpoint was not written, and make room again."""
        self._failures += 1
        self._manager.reload()
        if jax.process_index() == 0:
            for left in self._directory.glob("*.orbax-checkpoint-tmp"):
                _remove(left)
        last = "there is none yet" if self.latest_step is None else f"step {self.latest_step}"
        message = (
            f"the checkpoint of step {self._saving} could not be written: "
            f"{one_line(error)[:200]}; the last good one: {last}"
        )
        if self._failures >= FAILED_SAVES:
            raise UserError(f"{message}; it is the third failure in a row")
        logging.warning("%s; the run goes on", message)


def _remove(left: epath.Path) -> None:
    """Remove what is left of a write, to which threads may still add: they end within seconds."""
    end = time.monotonic() + REMOVAL_SECONDS
    while left.exists() and time.monotonic() < end:
        try:
            left.rmtree()
        except OSError:
            time.sleep(0.1)


def _hush_threads() -> None:
    """A write that fails is reported once, above, and not by each thread that took part in it."""
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine '.*' was never awaited")
    logger = logging.get_absl_logger()
    if _of_orbax not in logger.filters:
        logger.addFilter(_of_orbax)
        usual = sys.unraisablehook

        def hook(raised: Any) -> None:
            if str(raised.exc_value) != "Event loop is closed":  # of a write that was given up
                usual(raised)

        sys.unraisablehook = hook


def _of_orbax(record: python_logging.LogRecord) -> bool:
    """False, which leaves it out, for a line logged by Orbax."""
    return "orbax" not in record.pathname


def shapes_of(tree: Any) -> dict[str, list[int]]:
    """The shape of every array of a tree, by its path."""
    return {
        path_name(path): list(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _files(folder: epath.Path) -> list[str]:
    """Names of the files below a folder that a checkpoint needs."""
    found = []
    for place in folder.iterdir():
        if place.is_dir():
            found += [f"{place.name}/{name}" for name in _files(place)]
        elif place.name not in WRITTEN_LATER:
            found.append(place.name)
    return sorted(found)


def _size_and_sum(path: epath.Path) -> tuple[int, int | None]:
    """Bytes of a file, and their CRC; of a file in a bucket, which keeps its own, the size only."""
    if "://" in str(path):
        return path.stat().length, None
    size = crc = 0  # counted here: epath's `stat` fails where the owner has no name
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return size, crc


def _keep_small_arrays_whole() -> None:
    """Devices with copies of an array write a part of it each; Orbax would compile a program for
    each part of the smallest, of which 150 small arrays on eight devices take 15 s in a save."""
    usual = ocp.type_handlers.get_type_handler(jax.Array)
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=SLICE,
        # Without the usual one, writes go on after one of them has failed.
        array_metadata_store=getattr(usual, "_array_metadata_store", None),
    )
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
