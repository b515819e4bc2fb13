"""Checkpoints: written in the background, whole or not at all. The only module that knows Orbax."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from can_jax.errors import UserError


class Checkpointer:
    """The checkpoints of one run, numbered by step.

    Args:
        directory: where they lie; created if missing.
        keep_last: how many of the newest are kept.
        keep_every_steps: those of steps divisible by it are kept for ever.
    """

    def __init__(self, directory: epath.Path, keep_last: int, keep_every_steps: int | None = None):
        # Orbax wants an absolute path; that of a bucket is one, which `resolve` does not know.
        self._directory = directory if "://" in str(directory) else directory.resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every_steps,
            enable_async_checkpointing=True,
            create=True,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, run: dict[str, Any]) -> None:
        """Begin to save a state, and what JSON can hold of the run. Returns before it is written.

        A step that is saved already is left as it is.
        """
        if step == self.latest_step:
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        self._manager.save(step, args=items)

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """A saved state, placed as ``abstract`` says, and what was saved of the run.

        Args:
            step: of the checkpoint.
            abstract: the state's tree with shapes, types and shardings of now.

        Raises:
            UserError: the checkpoint is damaged, or of another model.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore()
        )
        place = self._directory / str(step)
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"checkpoint {place} does not fit this configuration, or is damaged: {reason}; "
                "give another --workdir, or the configuration it was made with"
            ) from error
        for (path, saved), wanted in zip(
            jax.tree_util.tree_leaves_with_path(restored.state),
            jax.tree.leaves(abstract),
            strict=True,
        ):
            if saved.shape != wanted.shape:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"checkpoint {place} is of another model: {name} is {saved.shape}, "
                    f"this configuration has {wanted.shape}; give another --workdir"
                )
        return restored.state, restored.run

    def wait(self) -> None:
        """Until what was begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish, and let go."""
        self.wait()
        self._manager.close()
