"""The identity of a fine-tuning run: its encoder, data and settings, stored in ``identity.json``.

A run that finds checkpoints in its run directory compares its identity with the stored identity,
and stops if they differ. Therefore all checkpoints of a directory come from the same encoder, data
and settings.
"""

import json
from typing import Any

from etils import epath

from can_jax.utils.errors import UserError, reason_of
from can_jax.utils.files import replace_text
from can_jax.utils.nested import flatten

IDENTITY = "identity.json"
SHOWN = 4  # the maximum number of differences that a message names
# The path and the step of the weights may differ if the checksums are equal: a file can be moved.
CHECKSUM, ORIGIN = "encoder.sha256", ("encoder.path", "encoder.step")

Identity = dict[str, Any]


def read_identity(workdir: epath.Path) -> Identity | None:
    """Return the identity stored in a run directory, or None if there is none.

    Raises:
        UserError: ``identity.json`` cannot be read or is not a JSON object.
    """
    path = workdir / IDENTITY
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; give another --workdir") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} does not contain a JSON object; give another --workdir")
    return stored


def store_identity(workdir: epath.Path, identity: Identity | None) -> None:
    """Store the identity of a new run; if ``identity`` is None, remove the stored identity."""
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
    return bool(saved_steps(workdir))


def saved_steps(workdir: epath.Path) -> list[int]:
    """Return the steps of the checkpoints in a run directory, in any order.

    Raises:
        UserError: The directory cannot be read.
    """
    folder = workdir / "checkpoints"
    try:
        if not folder.exists():
            return []
        return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read: {reason_of(error)}. Nothing was changed; re-run the "
            "command once the folder can be read"
        ) from error


def check_identity(workdir: epath.Path, identity: Identity | None) -> None:
    """Check that the checkpoints in a run directory belong to the run that is about to resume.

    Args:
        workdir: The run directory. A directory without checkpoints passes the check.
        identity: The identity of the run that is about to start; None for pretraining.

    Raises:
        UserError: The checkpoints belong to a different run, or no identity is stored for a
            fine-tuning run. Also raised if ``identity.json`` or the directory cannot be read.
    """
    if not has_checkpoints(workdir):
        return
    stored = read_identity(workdir)
    if stored is None and identity is None:
        return
    if identity is None:
        raise UserError(
            f"--workdir={workdir} holds a fine-tuning run, not a pretraining run; give another "
            "--workdir"
        )
    if stored is None:
        raise UserError(
            f"--workdir={workdir} holds checkpoints but no {IDENTITY}, so they were written by "
            "pretraining or by an older version of can_jax; give another --workdir"
        )
    if lines := differences(stored, identity):
        more = f", and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise UserError(
            f"--workdir={workdir} holds a run that differs from this one: "
            f"{', '.join(lines[:SHOWN])}{more}; give another --workdir"
        )


def differences(stored: Identity, wanted: Identity) -> list[str]:
    """Return a description of each key whose value differs between two identities.

    The path and step of the encoder weights are ignored if the checksums of the weights are equal.

    Args:
        stored: The identity stored in the run directory.
        wanted: The identity of the run that is about to start.
    """
    old, new = (flatten(json.loads(json.dumps(identity))) for identity in (stored, wanted))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if CHECKSUM not in keys:
        keys = [key for key in keys if key not in ORIGIN]
    return [f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in keys]


def _short(value: Any) -> str:
    """Format a value for a message; shorten checksums and long texts."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) == 64:  # a checksum
        return f"{text[:12]}…"
    return text if len(text) <= 80 else f"{text[:30]}…{text[-49:]}"
