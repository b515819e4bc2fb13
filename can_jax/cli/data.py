"""The option ``--data`` of the commands that read images with an encoder."""

from typing import Any

from ml_collections import ConfigDict

from can_jax.data.sources.detect import kind_of
from can_jax.utils.errors import UserError


def select_data(config: ConfigDict, path: str, given: dict[str, Any]) -> None:
    """Set the path of the data of an evaluation, and the source that reads it.

    Args:
        config: The configuration of the evaluation; changed in place.
        path: The value of ``--data``: a folder of images or shards, or a pattern of shards. Its
            kind selects the source, unless ``config.data.source`` is set.
        given: The values that the command line sets, by dotted configuration key.

    Raises:
        UserError: The command line also sets ``data.path``, or no source reads the path.
    """
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
