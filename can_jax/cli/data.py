"""The option ``--data`` of the commands that read images with an encoder."""

from typing import Any

from ml_collections import ConfigDict

from can_jax.cli.flags import Flags
from can_jax.data.sources.detect import kind_of
from can_jax.utils.errors import UserError


class DataFlag:
    """The flag ``--data`` of a command."""

    def __init__(self, flags: Flags):
        self._path = flags.path(
            "data",
            "The path of the images: a folder, shards or arrays; by default the data set of the "
            "run.",
            web=True,
        )

    def select(self, config: ConfigDict, given: dict[str, Any]) -> None:
        """Set the data path of an evaluation, and the data source that reads this path.

        Without ``--data`` on the command line, ``config`` is not changed.

        Args:
            config: The configuration of the evaluation; changed in place. If
                ``config.data.source`` is set, its value is retained.
            given: The values that the command line sets, by dotted configuration key.

        Raises:
            UserError: The command line also sets ``data.path``, or no source reads the path.
        """
        path = self._path.value
        if path is None:
            return
        if "data.path" in given:
            raise UserError("--data and --config.data.path set the same value: give one of them")
        source = config.data.source
        if source is None:
            try:
                source = kind_of(path).source
            except UserError as error:
                raise UserError(f"--data={error}") from error
        with config.ignore_type():
            config.data.update(source=source, path=path)
