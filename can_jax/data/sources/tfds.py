"""The source `tfds`: a data set that TFDS has prepared, whose records are read by byte range."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from can_jax.data.formats.tfds_files import check_features, check_name
from can_jax.data.sources.example_table import Table
from can_jax.data.sources.indexed import IndexedSource
from can_jax.data.sources.shards import example_parser, scan_shards
from can_jax.data.sources.stored_index import stored_table
from can_jax.data.storage.splits import shown, some, standard
from can_jax.utils.errors import UserError, one_line
from can_jax.utils.tensorflow import tensorflow

EXPRESSION = re.compile(r"[\[+]")  # in a split expression of TFDS, such as train[:90%]+test


class Located(NamedTuple):
    """The location of a split's records, and the names of the features to use.

    Attributes:
        root: The folder that contains the shards.
        shards: The file names of the shards.
        image_key: The name of the feature that contains the image.
        label_key: The name of the feature that contains the label; None if there is none.
        label_names: The class names, indexed by label; empty if ``label_key`` is None.
        ranges: The ranges of records that a split expression such as `train[:90%]` selects, each as
            (shard, index of the first record, number of records). ``ranges`` is empty if the split
            is a name instead of an expression.
    """

    root: str
    shards: list[str]
    image_key: str
    label_key: str | None
    label_names: tuple[str, ...]
    ranges: tuple[tuple[str, int, int], ...] = ()


def open_tfds(
    name: str, data_dir: str | None, split: str, index: str | None = None, cache_bytes: int = 0
) -> IndexedSource:
    """Open a split of a data set that TFDS has already prepared; see `locate_tfds`.

    Args:
        name: The name of the data set: NAME or NAME/CONFIG, optionally followed by :VERSION.
        data_dir: The TFDS data directory; None for the default of TFDS.
        split: The name of the split, or a split expression such as `train[:90%]`.
        index: The folder of the index; None for the default folder. If ``split`` is a split
            expression, no index is used, and a warning is logged if ``index`` is given.
        cache_bytes: The size of a cache of encoded images in memory, in bytes; 0 for none.
    """
    located = locate_tfds(name, data_dir, split)
    table = None
    if not located.ranges:  # a split expression counts all records, but an index may lack some
        table = stored_table("tfrecord", located.root, split, index, located.shards)
    if table is None:
        table = scan_shards("tfrecord", located.root, located.shards)
    if located.ranges:
        if index:
            logging.warning(
                "config.data.index=%s is not used, because the split %s is an expression",
                index, split,
            )  # fmt: skip
        table = _selected(table, located)
    table = dataclasses.replace(table, label_names=located.label_names)
    parse = example_parser(located.image_key, located.label_key)
    return IndexedSource(located.root, table, parse, cache_bytes)


def _selected(table: Table, located: Located) -> Table:
    """Return a table of the records that a split expression selects, in the order of
    ``located.ranges``."""
    starts = np.searchsorted(table.file, np.arange(len(located.shards) + 1))
    rows = []
    for shard, first, count in located.ranges:
        file = located.shards.index(shard)
        rows.append(np.arange(starts[file], starts[file + 1])[first : first + count])
    return table.select(np.concatenate(rows))


def locate_tfds(name: str, data_dir: str | None, split: str) -> Located:
    """Locate a split of a data set that TFDS has prepared as TFRecords in a data directory.

    Of several image or label features, the one in the `supervised_keys` of the data set is used. If
    `supervised_keys` contains no image or label feature, the feature named `image` or `label`,
    respectively, is used. Nothing is downloaded.

    Raises:
        UserError: The name is invalid, or the data set is not prepared as TFRecords, uses feature
            classes outside TFDS, or lacks the split. `UserError` is also raised if no image
            feature is suitable, or if the choice among several is unclear.
    """
    check_name(name)
    tensorflow()  # hides the GPUs before TFDS imports TensorFlow
    import tensorflow_datasets as tfds

    folder_of_sets = data_dir or tfds.core.constants.DATA_DIR
    for folder in tfds.core.utils.file_utils.list_data_dirs(given_data_dir=data_dir):
        check_features(os.fspath(folder), tfds.core.naming.parse_builder_name_kwargs(name)[0].name)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS and file systems raise many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"TFDS cannot open {name!r} in {folder_of_sets}: {reason}") from error
    splits = builder.info.splits
    same = [name for name in splits if standard(name) == standard(split)]
    split = split if split in splits or len(same) != 1 else same[0]
    expression = bool(EXPRESSION.search(split))
    if expression:
        try:
            parts = splits[split].file_instructions
        except Exception as error:  # TFDS raises many types
            raise UserError(
                f"config.data.split={split} is not a valid split expression of {name!r}: "
                f"give an expression of the splits {', '.join(splits)}, such as train[:90%] or "
                f"train+test ({one_line(error)[:200]})"
            ) from error
    elif split not in splits:
        there = ", ".join(splits) or "none: prepare its data in that folder first"
        raise UserError(
            f"TFDS data set {name!r} in {folder_of_sets} has no split {split!r}; it has {there}"
        )
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"TFDS data set {name!r} is stored as {builder.info.file_format.value}; "
            "only tfrecord can be read: prepare it with file_format='tfrecord'"
        )
    features = dict(builder.info.features.items())
    supervised = builder.info.supervised_keys or ()
    image_key = _choose(name, features, tfds.features.Image, "image", supervised)
    label_key = _choose(name, features, tfds.features.ClassLabel, "label", supervised)
    if image_key is None:
        raise UserError(
            f"TFDS data set {name!r} has the features {', '.join(sorted(features))}, none of "
            "which is clearly the image: prepare it with only one image feature, with one named "
            "'image', or with one in supervised_keys"
        )
    kind = np.dtype(features[image_key].np_dtype)
    if kind.kind == "f":
        raise UserError(
            f"TFDS data set {name!r} stores {image_key!r} as {kind}, packed into the bytes of "
            "PNGs; only uint8 and uint16 images can be read: prepare it with one of these types"
        )
    ranges: tuple[tuple[str, int, int], ...] = ()
    if expression:
        paths = sorted({str(part.filename) for part in parts})
        ranges = tuple((os.path.basename(part.filename), part.skip, part.take) for part in parts)
        if not paths:
            raise UserError(f"config.data.split={split} selects no example of {name!r}")
    else:
        paths = [str(path) for path in splits[split].filepaths]
    return Located(
        root=os.path.dirname(paths[0]),
        shards=[os.path.basename(path) for path in paths],
        image_key=image_key,
        label_key=label_key,
        label_names=tuple(features[label_key].names) if label_key else (),
        ranges=ranges,
    )


def _choose(
    name: str, features: Mapping[str, Any], kind: type, usual: str, supervised: Sequence[Any]
) -> str | None:
    """Return the name of the feature to use among those of the class ``kind``, or None if there is
    none.

    Of several candidates, the first one in ``supervised`` is used. If ``supervised`` contains no
    candidate, the candidate named ``usual`` is used. If no candidate is named ``usual`` either, the
    result is None. A choice among several candidates is logged, even if the result is None.

    Args:
        name: The name of the data set, for messages.
        features: The TFDS features of the data set by name, in any order.
        kind: The TFDS class of the feature to choose, such as `tfds.features.Image`.
        usual: The usual name of a feature of the class ``kind``.
        supervised: The `supervised_keys` of the data set: the names of the input and the target.
    """
    keys = sorted(key for key, feature in features.items() if isinstance(feature, kind))
    if len(keys) < 2:
        return next(iter(keys), None)
    chosen = next((key for key in (*supervised, usual) if key in keys), None)
    logging.warning(
        "TFDS data set %r has the %s features %s; %s is used. A feature in "
        "supervised_keys is preferred, then one named %r",
        name, kind.__name__, some(keys), shown(chosen or "none"), usual,
    )  # fmt: skip
    return chosen
