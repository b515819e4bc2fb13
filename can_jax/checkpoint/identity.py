"""The identity of a run: the weights, data and settings of its results, stored when it begins.

A start in a run directory with checkpoints compares its identity with the stored one. A run is
therefore not continued with other weights, data or settings than its results state.
"""

import json
from typing import Any

from etils import epath

from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.files import replace_text
from can_jax.utils.nested import flatten

IDENTITY = "identity.json"
SHOWN = 4  # the maximum number of differences that a message names
# The path and step of the weights are compared only if the checksums differ: a file can be moved.
CHECKSUM, ORIGIN = "encoder.sha256", ("encoder.path", "encoder.step")

Identity = dict[str, Any]


def read_identity(workdir: epath.Path) -> Identity | None:
    """Return the identity that a run directory holds, or None if it holds none.

    Raises:
        UserError: The file cannot be read, or does not hold an identity.
    """
    path = workdir / IDENTITY
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; give another --workdir") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} does not hold the identity of a run; give another --workdir")
    return stored


def store_identity(workdir: epath.Path, identity: Identity | None) -> None:
    """Store the identity of a new run. If it is None, remove the identity of an earlier run."""
    path = workdir / IDENTITY
    if identity is not None:
        replace_text(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")
    elif path.exists():
        path.unlink()


def has_checkpoints(workdir: epath.Path) -> bool:
    """Return whether a run directory holds a checkpoint.

    Raises:
        UserError: The directory cannot be read.
    """
    folder = workdir / "checkpoints"
    try:
        return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read: {reason_of(error)}. Nothing was changed: run the same "
            "command once it can be read"
        ) from error


def check_identity(workdir: epath.Path, identity: Identity | None) -> None:
    """Check that the checkpoints of a run directory belong to the run that is about to use them.

    Args:
        workdir: The run directory. In one without checkpoints, any run can begin.
        identity: The identity of the run; None for pretraining.

    Raises:
        UserError: The checkpoints belong to another run, or have no identity to compare.
    """
    if not has_checkpoints(workdir):
        return
    stored = read_identity(workdir)
    if stored is None and identity is None:
        return
    if identity is None:
        raise UserError(
            f"--workdir={workdir} holds the training of a classifier, not a pretraining run; give "
            "another --workdir"
        )
    if stored is None:
        raise UserError(
            f"--workdir={workdir} holds checkpoints without {IDENTITY}, from pretraining or from "
            "an older version: their encoder and data are unknown; give another "
            "--workdir"
        )
    if lines := differences(stored, identity):
        more = f", and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise UserError(
            f"--workdir={workdir} holds a different run: {', '.join(lines[:SHOWN])}{more}; "
            "give another --workdir"
        )


def differences(stored: Identity, wanted: Identity) -> list[str]:
    """Return a phrase for each key whose value differs; an empty list for the same run.

    The path and step of the weights are ignored if the checksums of the weights agree.

    Args:
        stored: The identity that a run directory holds.
        wanted: The identity of the run that is about to use it.
    """
    old, new = (flatten(json.loads(json.dumps(identity))) for identity in (stored, wanted))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if CHECKSUM not in keys:
        keys = [key for key in keys if key not in ORIGIN]
    return [f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in keys]


def _short(value: Any) -> str:
    """Return a value for a message, with the middle of a long one elided."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) == 64:  # a checksum
        return f"{text[:12]}…"
    return text if len(text) <= 80 else f"{text[:30]}…{text[-49:]}"
