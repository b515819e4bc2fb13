"""Files of features: intermediate parts, and the final Parquet, npz or CSV file."""

import csv
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from can_jax.utils.archives import Column, map_npy, read_npz, write_npz
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_file, replacing


class Part(NamedTuple):
    """The features of a range of examples, and the names of its undecodable images.

    Attributes:
        features: The features of the decoded images, float32 (images, width).
        labels: The class label of each decoded image; -1 if unknown.
        names: The name of each decoded image.
        broken: The names of the undecodable images.
        reasons: The reason why each image in ``broken`` is undecodable.
    """

    features: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    broken: np.ndarray
    reasons: np.ndarray

    @staticmethod
    def joined(parts: "Sequence[Part]") -> "Part":
        """Concatenate several parts into one."""
        filled = [part for part in parts if len(part.features)] or parts[:1]
        features = np.concatenate([part.features for part in filled])
        rest = (np.concatenate(column) for column in list(zip(*parts, strict=True))[1:])
        return Part(features, *rest)

    def save(self, path: Path) -> None:
        """Write the features to a `.npy` file beside ``path``, and then the other arrays to
        ``path``.

        The part counts as complete once ``path`` exists.
        """
        np.save(path.with_suffix(".npy"), self.features)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: getattr(self, name) for name in self._fields[1:]})

    @staticmethod
    def load(path: Path) -> "Part":
        """Read a part, with memory-mapped features."""
        rest = read_npz(path)
        features = map_npy(path.with_suffix(".npy"))
        return Part(features, *(rest[name] for name in Part._fields[1:]))


class Table:
    """The features of all images of a data set, which are read one part at a time.

    Attributes:
        images: The number of images that have features.
        width: The number of features per image; 0 if there are no images.
        label_names: The names of the classes, indexed by label; empty if unknown.
        labeled: Whether at least one image has a label.
        longest: The number of characters of the longest image name.
        identity: A description of the weights, the data and the settings, as JSON values.
    """

    def __init__(self, paths: list[Path], label_names: tuple[str, ...], identity: dict[str, Any]):
        self._paths, self.label_names, self.identity = paths, label_names, identity
        self.images, self.width, self.labeled, self.longest = 0, 0, False, 1
        for part in self.parts():
            self.images += len(part.labels)
            self.labeled |= bool((part.labels >= 0).any())
            self.longest = max(self.longest, part.names.dtype.itemsize // 4)
            self.width = part.features.shape[1]

    def parts(self) -> Iterator[Part]:
        """Yield the parts that hold at least one decoded image."""
        for path in self._paths:
            part = Part.load(path)
            if len(part.labels):
                yield part

    def classes(self, labels: np.ndarray) -> list[str]:
        """Return the class name of each label, or an empty string for an unknown label."""
        names, count = self.label_names, len(self.label_names)
        return [names[label] if 0 <= label < count else "" for label in labels]


def _write_npz(path: Path, table: Table) -> None:
    names, identity = np.array(table.label_names, str), np.array(_identity(table))
    columns = {
        "names": Column(
            np.dtype(f"<U{table.longest}"), (table.images,), (p.names for p in table.parts())
        ),
        "features": Column(
            np.dtype("<f4"), (table.images, table.width), (p.features for p in table.parts())
        ),
        "label_names": Column(names.dtype, names.shape, [names]),
        "identity": Column(identity.dtype, (), [identity]),
    }
    if table.labeled:
        labels = (p.labels for p in table.parts())
        columns["labels"] = Column(np.dtype("<i4"), (table.images,), labels)
    write_npz(path, columns)


def _write_csv(path: Path, table: Table) -> None:
    labels: list[str] = []
    if table.labeled:
        labels = ["label", "class"] if table.label_names else ["label"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *labels, *(f"feature_{i}" for i in range(table.width))])
        for part in table.parts():
            classes = table.classes(part.labels)
            for row, name in enumerate(part.names):
                known = [part.labels[row], classes[row]][: len(labels)]
                # Nine significant digits identify a float32.
                writer.writerow([name, *known, *(f"{value:.9g}" for value in part.features[row])])


def _write_parquet(path: Path, table: Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field("name", pa.string())]
    if table.labeled:
        fields.append(pa.field("label", pa.int32()))
        if table.label_names:
            fields.append(pa.field("class", pa.string()))
    fields.append(pa.field("features", pa.list_(pa.float32(), table.width)))
    schema = pa.schema(fields, metadata={"can_jax": _identity(table)})
    with pq.ParquetWriter(path, schema) as writer:
        for part in table.parts():
            columns = {
                "name": pa.array(part.names.tolist(), pa.string()),
                "label": pa.array(part.labels, pa.int32()),
                "class": pa.array(table.classes(part.labels), pa.string()),
                "features": pa.FixedSizeListArray.from_arrays(
                    pa.array(part.features.reshape(-1), pa.float32()), table.width
                ),
            }
            writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))


def _identity(table: Table) -> str:
    return json.dumps(table.identity)


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".csv": _write_csv,
}


def check_output(output: Path) -> None:
    """Check that a feature file can be created at ``output``.

    Raises:
        UserError: The file exists, is not local, cannot be created, has an unknown suffix, or
            requires a package that is not installed.
    """
    if output.suffix not in WRITERS:
        raise UserError(f"--output={output}: the suffix must be one of {', '.join(WRITERS)}")
    if "://" in str(output) or ":/" in str(output):
        raise UserError(f"--output={output}: give a path of the local file system")
    if output.exists():
        raise UserError(f"--output={output} exists already: remove it, or give another file")
    check_file(output, "--output=")
    if output.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"--output={output}: Parquet needs pyarrow: pip install pyarrow, or choose .npz or .csv"
        )
