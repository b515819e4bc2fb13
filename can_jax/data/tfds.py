"""`tfds`: a prepared TensorFlow data set, each record read where it lies in its file."""

import dataclasses
import struct
from typing import Any

import numpy as np
from jaxtyping import Int

from can_jax.errors import UserError
from can_jax.tf import tensorflow

HEADER, FOOTER = 12, 4  # bytes of a TFRecord before its content: length and check sum; and after


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Records of TFRecord files, found by byte offset, so that they can be read in any order."""

    builder: Any
    files: tuple[str, ...]
    shard: Int[np.ndarray, " examples"]  # index into files
    offset: Int[np.ndarray, " examples"]
    length: Int[np.ndarray, " examples"]
    image_key: str
    label_key: str | None
    label_names: tuple[str, ...]
    labels: None = None

    @property
    def examples(self) -> int:
        """How many records there are."""
        return len(self.shard)

    def _record(self, index: np.ndarray) -> bytes:
        """The serialised example at ``index``."""
        with tensorflow().io.gfile.GFile(self.files[self.shard[index]], "rb") as file:
            file.seek(int(self.offset[index]))
            return file.read(int(self.length[index]))

    def load(self, index: Any) -> tuple[Any, Any]:
        """The encoded image and the label of a record, as tensors."""
        import tensorflow_datasets as tfds

        tf = tensorflow()
        record = tf.numpy_function(self._record, [index], tf.string, stateful=False)
        record.set_shape(())
        # Other features are not even parsed: one that is large, or broken, costs nothing.
        features = self.builder.info.features
        keys = [self.image_key] + ([self.label_key] if self.label_key else [])
        example = tfds.features.FeaturesDict(
            {key: features[key] for key in keys}
        ).deserialize_example(record, decoders={self.image_key: tfds.decode.SkipDecoding()})
        label = example[self.label_key] if self.label_key else tf.constant(-1)
        return example[self.image_key], tf.cast(label, tf.int32)

    def describe(self, index: int) -> str:
        """File and byte offset of a record."""
        return f"{self.files[self.shard[index]]}, the record at byte {self.offset[index]}"


def open_tfds(name: str, data_dir: str | None, split: str) -> TfdsSource:
    """A split of a data set that TFDS has prepared as TFRecords below ``data_dir``.

    The first image feature and the first class label are used. Nothing is downloaded.

    Raises:
        UserError: not prepared, no such split, or nothing to use in it.
    """
    tensorflow()  # before TFDS can import it with the GPUs in sight
    import tensorflow_datasets as tfds

    place = data_dir or tfds.core.constants.DATA_DIR
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # many kinds, of TFDS and of the file system
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"TFDS finds no data set {name!r} in {place}: {reason}") from error
    splits = builder.info.splits
    if split not in splits:
        there = ", ".join(splits) or f"none; prepare it first, config.data.path={place} has no data"
        raise UserError(f"TFDS data set {name!r} in {place} has no split {split!r}; it has {there}")
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"TFDS data set {name!r} is stored as {builder.info.file_format.value}; "
            "only tfrecord can be read: prepare it with file_format='tfrecord'"
        )
    features = builder.info.features
    images = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    if not images:
        raise UserError(f"TFDS data set {name!r} has no image feature; it has {list(features)}")
    files = tuple(map(str, splits[split].filepaths))
    places = [_scan(file) for file in files]
    shard = np.repeat(np.arange(len(files)), [len(lengths) for _, lengths in places])
    offsets, lengths = (np.concatenate(column) for column in zip(*places, strict=True))
    if not len(offsets):
        raise UserError(f"TFDS data set {name!r} in {place}: the split {split!r} is empty")
    return TfdsSource(
        builder=builder,
        files=files,
        shard=shard,
        offset=offsets,
        length=lengths,
        image_key=images[0],
        label_key=labels[0] if labels else None,
        label_names=tuple(features[labels[0]].names) if labels else (),
    )


def _scan(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Offset and length in bytes of every record of a TFRecord file, from their headers alone."""
    gfile = tensorflow().io.gfile
    offsets, lengths = [], []
    size = gfile.stat(path).length
    with gfile.GFile(path, "rb") as file:
        place = 0
        while place < size:
            file.seek(place)
            header = file.read(HEADER)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER else size
            if place + HEADER + length + FOOTER > size:
                raise UserError(
                    f"{path} is cut off: its last record, at byte {place}, is not whole"
                )
            offsets.append(place + HEADER)
            lengths.append(length)
            place += HEADER + length + FOOTER
    return np.array(offsets, np.int64), np.array(lengths, np.int64)
