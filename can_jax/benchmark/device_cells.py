"""The images and configurations of a study on one device."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from can_jax.config.baselines import changed
from can_jax.config.durations import TOTAL
from can_jax.config.resolve import resolve, to_json
from can_jax.data.sources.arrays import open_arrays
from can_jax.data.sources.synthetic_shapes import open_shapes
from can_jax.utils.errors import UserError

CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Images:
    """The images and labels of a study, in host memory.

    Attributes:
        train, test: The uint8 images of the training and test splits.
        train_labels, test_labels: The class label of each image, a nonnegative integer.
        origin: The folder from which the images were read, or ``synthetic shapes``.
    """

    train: UInt8[np.ndarray, "examples height width channels"]
    train_labels: Int[np.ndarray, " examples"]
    test: UInt8[np.ndarray, "others height width channels"]
    test_labels: Int[np.ndarray, " others"]
    origin: str

    @functools.cached_property
    def digest(self) -> str:
        """The first 16 hex digits of a SHA-256 hash of all images and labels."""
        hashed = hashlib.sha256()
        for array in (self.train, self.train_labels, self.test, self.test_labels):
            hashed.update(np.asarray(array).tobytes())
        return hashed.hexdigest()[:16]

    def held_out(self, share: float) -> "Images":
        """Split the training images; the last fraction ``share`` of them becomes the test split.

        The original test images are not used.
        """
        kept = len(self.train) - max(1, round(share * len(self.train)))
        images, labels = self.train, self.train_labels
        return Images(images[:kept], labels[:kept], images[kept:], labels[kept:], self.origin)


def read_images(path: str | None, count: int | None, size: int) -> Images:
    """Read images and labels from a folder of npz files, or generate images of synthetic shapes.

    Args:
        path: A folder that the data source ``arrays`` can read; None for synthetic shapes.
        count: The maximum number of training images; None for all. For synthetic shapes, the number
            of images in each split; None for 50,000.
        size: The height and width of synthetic images in pixels.

    Raises:
        UserError: The folder holds no npz files of images, or an image has no label.
    """
    if path is None:
        count = count or 50_000
        splits = [
            open_shapes(n, (size, size), CHANNELS, split)
            for n, split in ((count, "train"), (count, "test"))
        ]
        origin = "synthetic shapes"
    else:
        splits = [open_arrays(path, split, CHANNELS) for split in ("train", "test")]
        origin = path
    arrays: list[Any] = []
    for source, most in zip(splits, (count, None), strict=True):
        labels = np.asarray(source.labels, np.int32)[:most]
        if (labels < 0).any():
            raise UserError(f"--data={path}: the kNN accuracy requires a label for every image")
        arrays += [np.asarray(source.images)[:most], labels]
    return Images(arrays[0], arrays[1], arrays[2], arrays[3], origin)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A configuration that is trained in several runs.

    Attributes:
        name: The name of the cell in results and file names.
        config: The resolved configuration, whose `total_steps` is a multiple of `epoch_steps`.
        seeds: The random seed of each run.
        learning_rates: The value of `optimizer.learning_rate` of each run.
        images: The training and test images with their labels.
    """

    name: str
    config: ConfigDict
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    images: Images

    @property
    def epoch_steps(self) -> int:
        """The number of full batches in an epoch. Images left over at the end of an epoch begin the
        next epoch."""
        return len(self.images.train) // self.config.batch_size

    @property
    def epochs(self) -> int:
        """The number of epochs for which the cell trains."""
        return int(self.config.total_steps) // self.epoch_steps

    @property
    def key(self) -> str:
        """A hash of the configuration, the seed and learning rate of each run, and the images."""
        runs = [self.seeds, self.learning_rates]
        determining = json.dumps([to_json(self.config), runs, self.images.digest])
        return hashlib.sha256(determining.encode()).hexdigest()[:16]


def make_cell(
    name: str,
    recipe: ConfigDict,
    changes: dict[str, Any],
    epochs: int,
    seeds: Sequence[int],
    images: Images,
    learning_rates: Sequence[float] = (),
) -> Cell:
    """Return a `Cell` that trains a recipe with some settings changed.

    Args:
        name: The name of the cell, used in results and file names.
        recipe: The configuration of a recipe, not yet resolved.
        changes: The changed settings by dotted configuration key.
        epochs: The number of training epochs.
        seeds: The random seed of each run.
        images: The training and test images with their labels.
        learning_rates: The `optimizer.learning_rate` of each run; by default the configured value.

    Raises:
        UserError: A setting is invalid, or the batch size exceeds the number of training images.
    """
    recipe = changed(recipe, changes)
    if (recipe.augment.crop_interpolation, recipe.augment.crop_fit) != ("bilinear", "redraw"):
        raise UserError(
            f"cell {name!r}: crops on the device require augment.crop_interpolation='bilinear' and "
            "augment.crop_fit='redraw'; set both"
        )
    steps = len(images.train) // recipe.batch_size
    if not steps:
        raise UserError(
            f"cell {name!r}: config.batch_size={recipe.batch_size} exceeds the "
            f"{len(images.train)} training images: reduce it"
        )
    lengths = dict.fromkeys(TOTAL) | {"total_steps": epochs * steps}
    recipe = changed(recipe, lengths | {"data.path": recipe.data.path or "-"})
    for rate in learning_rates:
        resolve(changed(recipe, {"optimizer.learning_rate": rate}))  # Raises for an invalid rate.
    config = resolve(recipe)
    rates = learning_rates or [config.optimizer.learning_rate] * len(seeds)
    return Cell(name, config, tuple(seeds), tuple(rates), images)
