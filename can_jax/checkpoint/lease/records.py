"""The record files of the past and present holders of a run directory."""

import json
from typing import Any

from can_jax.checkpoint.lease.files import Files

COPY = "lock.json"
PREFIX = ".lock-"
WIDTH = 1000  # bytes of a record; constant, so that overwriting it needs no space on the disk

Record = dict[str, Any]


class Records:
    """The record files in a run directory.

    Args:
        files: The file operations on the run directory.
    """

    def __init__(self, files: Files):
        self._files = files

    def numbers(self) -> list[int]:
        """Return the numbers of all record files ``.lock-NUMBER``."""
        ends = (n.removeprefix(PREFIX) for n in self._files.names() if n.startswith(PREFIX))
        return [int(end) for end in ends if end.isdecimal()]

    def newest(self) -> tuple[int, Record | None]:
        """Return the number and content of the newest record, or ``(0, None)`` if there is none."""
        while numbers := self.numbers():
            record = self.read(name_of(max(numbers)))
            if record is not None:
                return max(numbers), record
        return 0, None

    def read(self, name: str) -> Record | None:
        """Return a record: an empty dict if the file is malformed, or None if the file does not
        exist."""
        text = self._files.read(name)
        if text is None:
            return None
        try:
            record = json.loads(text)
        except ValueError:
            return {}
        return record if isinstance(record, dict) else {}

    def text(self, record: Record) -> str:
        """Return a record as JSON, padded to at least `WIDTH` characters."""
        return json.dumps(record).ljust(WIDTH) + "\n"


def name_of(number: int) -> str:
    """Return the file name of the record with the given number."""
    return f"{PREFIX}{number}"


def token(record: Record | None) -> Any:
    """Return the unique token in a record, or None for an old or damaged record without a token."""
    return (record or {}).get("token")


def who(record: Record) -> str:
    """Return a phrase that identifies the holder of a record in a message."""
    if "pid" not in record:
        return "another process"
    return f"process {record['pid']} on {record.get('host')}"
