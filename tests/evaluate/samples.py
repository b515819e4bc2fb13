"""A run directory with a random encoder, and a small data set in ImageNet's layout."""

import json
from pathlib import Path

import jax
import numpy as np
from etils import epath

from can_jax.checkpoint.manager import Checkpointer
from can_jax.config.resolve import to_json
from can_jax.distributed.mesh import make_mesh
from can_jax.evaluate.config import default_evaluation
from can_jax.train.step import abstract_state, make_step
from tests.data.samples import encode
from tests.helpers.configs import small_config
from tests.train.states import random_state

CLASSES = ("n01440764", "n01443537", "n01484850")


def run_directory(place, begun=None, **changes):
    """What a run of pretraining leaves, without the run.

    Args:
        place: The run directory.
        begun: Makes the state from the step and its shapes. By default it is random, which needs no
            compiled initialization.
        changes: Of the configuration; see `small_config`.
    """
    plain = {"data__image_size": 16, "model__depth": 2, "model__patch_embed": "linear"}
    changes = plain | changes
    config = small_config(**changes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    step = make_step(config, lambda _: 0.0)
    abstract = abstract_state(step, mesh)
    state = begun(step, abstract) if begun else random_state(abstract, config.seed)
    checkpoints = Checkpointer(epath.Path(place / "checkpoints"), keep_last=1)
    checkpoints.save(3, state, {})
    checkpoints.close()
    (place / "config.json").write_text(to_json(config))
    return place


def picture(label, rng):
    """An image whose class can be seen: one channel is bright."""
    image = rng.integers(0, 90, (22, 19, 3), dtype=np.uint8)
    image[..., label % 3] += 120
    return image


def imagenet(place, train=17, val=5, classes=CLASSES):
    """Folders `train/` and `val/` with so many images of each class; validation images are numbered
    throughout, and do not lie in that order."""
    rng, number = np.random.default_rng(0), 0
    for label, name in enumerate(classes):
        for split, count in (("train", train), ("val", val)):
            folder = place / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                number += split == "val"
                file = (
                    f"{name}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"
                )
                (folder / file).write_bytes(encode(picture(label, rng)))
    return place


def arrays(place, train=17, val=5, classes=CLASSES):
    """Write the same as decoded images, `train.npz` and `val.npz`, which are read faster."""
    rng = np.random.default_rng(0)
    place.mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        labels = np.repeat(np.arange(len(classes)), count)
        images = np.stack([picture(label, rng) for label in labels])
        np.savez(place / f"{split}.npz", images=images, labels=labels, label_names=list(classes))
    return place


def source_of(data):
    """The `data.source` that reads what `imagenet` or `arrays` wrote."""
    return "arrays" if (Path(data) / "train.npz").exists() else "folder"


def evaluation(protocol, data=None, **changes):
    """A configuration; keyword `knn__k=3` sets `config.knn.k`."""
    config = default_evaluation()
    config.protocol, config.batch_size = protocol, 16
    if data is not None:
        config.data.update(source=source_of(data), path=str(data), test_split="val")
    return changed(config, **changes)


PLAIN = {
    f"classify__{name}": value
    for name, value in {
        "randaugment": (0, 0.0, 0.0), "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0,
        "random_erasing": 0.0,
    }.items()
}  # fmt: skip
"""Fine-tuning that leaves images alone, which compiles in a third of the time."""


def changed(config, **changes):
    """The configuration with some keys set; keyword `knn__k=3` sets `config.knn.k`."""
    for path, value in changes.items():
        *blocks, key = path.split("__")
        block = config
        for name in blocks:
            block = block[name]
        with block.ignore_type():
            block[key] = value
    return config


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())
