"""Check the files of a TFDS data set before TFDS reads them, since it imports what they name.

`features.json` names the class of each feature. TFDS imports its module, whatever it is, so that
somebody's data set would run somebody's code. The names of data sets can likewise stand for code
that is downloaded.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from can_jax.data.storage.files import exists, is_folder, listed
from can_jax.data.storage.reading import is_remote, open_file
from can_jax.data.storage.splits import shown
from can_jax.utils.errors import UserError, one_line

FEATURES = "features.json"
OWN = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")  # classes that TFDS itself has
KEYS = ("type", "pythonClassName", "python_class_name")  # under which a file names a class
NAME = re.compile(
    r"\w+(/[^/:=,]+)*(:(\d+|\*)(\.(\d+|\*))*)?"
)  # of a data set, its configuration and version
DEEPEST = 3  # folders: data set, configuration, version
LARGEST = 2**26  # bytes of such a file


def check_name(name: str) -> None:
    """Refuse the name of a data set that TFDS would download code for, or pass options to.

    Raises:
        UserError: It is not NAME, NAME/CONFIG or either with :VERSION.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"config.data.name={name!r}: give NAME, NAME/CONFIG, NAME:VERSION or "
            "NAME/CONFIG:VERSION of a TFDS data set; others would run code that is not of TFDS"
        )


def check_features(data_dir: str, name: str) -> None:
    """Refuse a data set whose files name a class that is not of TFDS itself.

    Args:
        data_dir: The folder of data sets.
        name: Of the data set, as TFDS names its folder.

    Raises:
        UserError: A file names another class, or cannot be read.
    """
    folder = os.path.join(os.path.expanduser(data_dir), name)
    try:
        paths = list(_files(folder, DEEPEST))
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be read: {one_line(error)}") from error
    for path in paths:
        for found in _classes(_read(path)):
            if not isinstance(found, str) or not OWN.fullmatch(found):
                raise UserError(
                    f"{shown(path)} names the class {found!r}, which is not of TFDS itself; "
                    "nothing of it was run: prepare the data set with features of TFDS, or as "
                    "TFRecords (config.data.source=tfrecord)"
                )


def _files(folder: str, depth: int) -> Iterator[str]:
    """Yield every file of features below a folder, as deep as TFDS looks."""
    if not is_folder(folder):
        return
    if exists(path := os.path.join(folder, FEATURES)):
        yield path
    for name in listed(folder) if depth > 0 else ():
        if is_remote(folder) or os.path.isdir(os.path.join(folder, name)):
            yield from _files(os.path.join(folder, name), depth - 1)


def _read(path: str) -> Any:
    try:
        with open_file(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{shown(path)} cannot be read: {one_line(error)}") from error


def _classes(content: Any) -> Iterator[Any]:
    """Yield what is named as a class anywhere in a file, in texts that are JSON again as well."""
    todo = [content]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            for key, value in part.items():
                # A feature can itself be named `type`; its description is a dict.
                if key in KEYS and not isinstance(value, dict):
                    yield value
                todo.append(value)
        elif isinstance(part, list):
            todo += part
        elif isinstance(part, str) and part.lstrip()[:1] in ("{", "["):
            try:
                todo.append(json.loads(part))
            except (ValueError, RecursionError):
                yield part[:100]  # TFDS might read what Python does not
