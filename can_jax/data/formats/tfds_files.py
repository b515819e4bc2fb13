"""Security checks of the files of a TFDS data set, which run before TFDS reads them.

`features.json` names the class of each feature, and TFDS imports the module of that class. Without
the checks, a third-party data set could execute arbitrary code. The name of a TFDS data set can
also refer to code that TFDS downloads and runs.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from can_jax.data.storage.files import exists, is_folder, listed
from can_jax.data.storage.reading import open_file
from can_jax.data.storage.remote import is_remote
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, one_line

FEATURES = "features.json"
OWN = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")  # classes that TFDS itself defines
KEYS = ("type", "pythonClassName", "python_class_name")  # the keys under which a file names a class
NAME = re.compile(
    r"\w+(/[^/:=,]+)*(:(\d+|\*)(\.(\d+|\*))*)?"
)  # a data set with an optional configuration and version
DEEPEST = 3  # folder levels: data set, configuration, version
LARGEST = 2**26  # the maximum bytes of `features.json`


def check_name(name: str) -> None:
    """Reject a data set name that contains options, or for which TFDS would download code.

    Raises:
        UserError: The name is not NAME or NAME/CONFIG, optionally followed by :VERSION.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"config.data.name={name!r}: give NAME, NAME/CONFIG, NAME:VERSION or "
            "NAME/CONFIG:VERSION of a TFDS data set; other forms could run third-party code"
        )


def check_features(data_dir: str, name: str) -> None:
    """Reject a data set whose files name a feature class that is not part of TFDS.

    Args:
        data_dir: The TFDS data directory, which contains one folder per data set.
        name: The name of the data set's folder in ``data_dir``.

    Raises:
        UserError: A `features.json` or its folder cannot be read, or a `features.json` names a
            class that is not part of TFDS.
    """
    folder = os.path.join(os.path.expanduser(data_dir), name)
    try:
        paths = list(_files(folder, DEEPEST))
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be read: {one_line(error)}") from error
    for path in paths:
        for class_name in _classes(_read(path)):
            if not isinstance(class_name, str) or not OWN.fullmatch(class_name):
                raise UserError(
                    f"{shown(path)} names the Python class {class_name!r}, which is not part of "
                    "TFDS; its code was not run. Prepare the data set with the feature classes of "
                    "TFDS, or as TFRecords (config.data.source=tfrecord)"
                )


def _files(folder: str, depth: int) -> Iterator[str]:
    """Yield the path of every `features.json` in a folder, at most ``depth`` levels below it."""
    if not is_folder(folder):
        return
    if exists(path := os.path.join(folder, FEATURES)):
        yield path
    for name in listed(folder) if depth > 0 else ():
        if is_remote(folder) or os.path.isdir(os.path.join(folder, name)):
            yield from _files(os.path.join(folder, name), depth - 1)


def _read(path: str) -> Any:
    """Return the parsed content of a `features.json`.

    Raises:
        UserError: The file cannot be read, exceeds `LARGEST` bytes, or is not valid JSON.
    """
    try:
        with open_file(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"the file has more than {LARGEST} bytes")
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{shown(path)} cannot be read: {one_line(error)}") from error


def _classes(content: Any) -> Iterator[Any]:
    """Yield each class name in the content of a `features.json`, including those inside strings
    that contain JSON."""
    todo = [content]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            for key, value in part.items():
                # A feature can itself be named `type`; the value is then a dict.
                if key in KEYS and not isinstance(value, dict):
                    yield value
                todo.append(value)
        elif isinstance(part, list):
            todo += part
        elif isinstance(part, str) and part.lstrip()[:1] in ("{", "["):
            try:
                todo.append(json.loads(part))
            except (ValueError, RecursionError):
                yield part[:100]  # the caller rejects it, because TFDS's parser may accept it
