"""What is evaluated: an encoder, where it comes from, and how to ask it for features."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from can_jax.augment.photometric import normalize, to_float
from can_jax.capture import read_config
from can_jax.config import default_config, resolve
from can_jax.errors import UserError
from can_jax.evaluate.config import default_evaluation, resolve_evaluation
from can_jax.initial import newest_state
from can_jax.model import can
from can_jax.parallel.mesh import make_mesh
from can_jax.parallel.rules import path_name, shardings
from can_jax.step import encoder_network, make_step
from can_jax.weights.digest import sha256_of
from can_jax.weights.reading import read_arrays
from can_jax.weights.torch_layout import encoder_sizes, from_torch

MANIFEST = "manifest.json"  # of an export


@dataclasses.dataclass(frozen=True)
class Subject:
    """An encoder.

    Attributes:
        config: of the run it is from, or what stands for one.
        parameters: of the encoder alone, placed over the mesh.
        identity: what `results.json` says of it.
    """

    config: ConfigDict
    parameters: Any
    identity: dict[str, Any]

    def tokens(
        self, parameters: Any, images: UInt8[Array, "images height width channels"]
    ) -> Float[Array, "images tokens units"]:
        """The encoder's tokens of whole images given as bytes. The class token comes first."""
        network = encoder_network(self.config)
        model = nnx.merge(nnx.graphdef(network), parameters, {}, copy=True)
        augment = self.config.augment
        found = model.encode(normalize(to_float(images), augment.mean, augment.std))
        patches = (images.shape[1] // model.patch_size) * (images.shape[2] // model.patch_size)
        assert found.shape[1] == patches + 1, "an evaluation hides nothing"
        return found

    def features(self, parameters: Any, images: Any) -> Float[Array, "images features"]:
        """Class token and mean patch token, from which `select` makes every kind of feature."""
        tokens = self.tokens(parameters, images).astype(jnp.float32)
        return jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)

    @property
    def patches(self) -> int:
        """Patches of an image."""
        height, width = self.config.data.image_size
        return (height // self.config.model.patch_size) * (width // self.config.model.patch_size)

    def select(
        self, found: Float[np.ndarray, "images features"], kind: str
    ) -> Float[np.ndarray, "images width"]:
        """Features of a kind, of what `features` gives."""
        return select(found, kind, self.patches)


def select(
    found: Float[np.ndarray, "images features"], kind: str, patches: int
) -> Float[np.ndarray, "images width"]:
    """One of `FEATURES`, of class token and mean patch token side by side."""
    first, mean = np.split(found, 2, axis=1)
    if kind == "all":
        return (first + patches * mean) / (patches + 1)
    return {"class": first, "patches": mean, "both": found}[kind]


def open_subject(checkpoint: str, untrained: bool, changes: ConfigDict, mesh: Mesh) -> Subject:
    """The encoder of a run directory, of an export, or of a file of weights in a known layout.

    Args:
        checkpoint: the directory, or the file.
        untrained: take the encoder as it was before the first step.
        changes: an evaluation's resolved configuration, in which ``data`` and ``model`` may differ
            from the run's.
        mesh: over which the parameters are placed.

    Raises:
        UserError: there is no such thing, or nothing in it.
    """
    place = epath.Path(checkpoint)
    if not place.exists():
        raise UserError(f"--checkpoint={checkpoint} does not exist")
    of_run = place.is_dir() and not (place / MANIFEST).exists()
    if of_run:
        run = resolve(read_config(place))
    else:
        arrays, facts = read_export(place)
        run = config_of_arrays(arrays, facts, changes.model.heads)
    config = changed(run, changes)
    wanted = nnx.to_pure_dict(nnx.state(encoder_network(config), nnx.Param))
    step = None
    if untrained:
        parameters, step = make_step(run, lambda _: 0.0).fresh().parameters, 0
    elif of_run:
        step, state = newest_state(place, make_step(run, lambda _: 0.0), mesh)
        parameters = state.parameters
    else:
        parameters, step = from_arrays(arrays, wanted), facts.get("step")
    encoder = {"encoder": parameters["encoder"]}
    identity = identity_of(place, step, config, encoder)
    places = shardings(wanted, mesh)
    placed = jax.tree.map(lambda x, where: jax.device_put(np.asarray(x), where), encoder, places)
    return Subject(config, placed, identity)


def identity_of(
    place: epath.Path, step: int | None, config: ConfigDict, parameters: Any
) -> dict[str, Any]:
    """What tells one set of weights from another."""
    size = can.encoder_size(config.model)
    return {
        "path": str(place),
        "step": step,
        "sha256": sha256_of(parameters),
        "model": dataclasses.asdict(size) | {"patch_size": config.model.patch_size},
        "image_size": list(config.data.image_size),
    }


def read_export(place: epath.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file of weights, or of the directory of an export, and what its manifest says
    of the model; nothing without one.

    Raises:
        UserError: there is no file of weights.
    """
    if not place.is_dir():
        return read_arrays(place), {}
    manifest = json.loads((place / MANIFEST).read_text())
    for name in ("model.safetensors", "model.npz"):
        if (place / name).exists():
            return read_arrays(place / name), manifest["model"]
    raise UserError(f"{place} holds no weights but a program; give another format of the export")


def from_arrays(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """A tree of parameters from arrays under MAE's names, or under ours.

    Raises:
        UserError: an array is missing, or has another shape.
    """
    paths = jax.tree_util.tree_leaves_with_path(like)
    if path_name(paths[0][0]) not in arrays:
        return from_torch(arrays, like)
    for path, leaf in paths:
        found = arrays.get(path_name(path))
        if found is None or found.shape != leaf.shape:
            shape = "not there" if found is None else f"of shape {found.shape}"
            raise UserError(f"the weights: {path_name(path)} is {shape}, not {leaf.shape}")
    leaves = [arrays[path_name(path)] for path, _ in paths]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def config_of_arrays(
    arrays: dict[str, np.ndarray], facts: dict[str, Any], heads: int | None
) -> ConfigDict:
    """What stands for the configuration of weights without a run: from a manifest, or from shapes.

    Args:
        arrays: of the encoder.
        facts: of the manifest, if there is one.
        heads: of the attention, which shapes do not tell; by default one for every 64 of the width.
    """
    if not facts:
        sizes = encoder_sizes(arrays)
        facts = {
            **sizes._asdict(),
            "heads": max(1, sizes.width // 64),
            "image_size": [14 * sizes.patch_size] * 2,
        }
    config = default_config()
    config.total_steps = 1
    size = tuple(facts["image_size"])
    config.data.update(source="shapes", image_size=size, channels=facts["channels"])
    names = ("width", "depth", "heads", "patch_size")
    config.model.update({name: facts[name] for name in names}, dtype="float32")
    if heads:
        config.model.heads = heads
    if "mean" in facts:
        config.augment.update(mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    if facts["channels"] != 3:
        config.augment.update(saturation=0.0, hue=0.0, greyscale=0.0)
    return resolve(config)


def changed(run: ConfigDict, changes: ConfigDict) -> ConfigDict:
    """The configuration of a run, with what an evaluation sets: data, size, type, mesh."""
    config = run.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        if changes.data.source is not None:
            shared = set(config.data) - {"image_size"}
            config.data.update({k: v for k, v in changes.data.items() if k in shared})
        if changes.data.image_size is not None:
            config.data.image_size = changes.data.image_size
        if changes.model.dtype is not None:
            config.model.dtype = changes.model.dtype
        config.model.remat, config.mesh = "none", changes.mesh
        config.init_from = None
    if config.data.channels != run.data.channels:
        raise UserError(
            f"config.data.channels={config.data.channels}: the encoder sees {run.data.channels}"
        )
    return resolve(config)


class Encoder:
    """An encoder to be called with images; what `can_jax.load` gives.

    Args:
        subject: the encoder.
    """

    def __init__(self, subject: Subject):
        self._subject = subject
        self._features = jax.jit(subject.features)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that it was trained or asked for; others work, too."""
        return self._subject.config.data.image_size

    def __call__(
        self, images: UInt8[np.ndarray, "images height width channels"], features: str = "patches"
    ) -> Float[np.ndarray, "images width_of_features"]:
        """Features of images given as bytes.

        Args:
            images: of one size, which patches divide. Positions follow from it.
            features: the mean of the patch tokens (`patches`), of all (`all`), the class token
                (`class`), or class token and patches side by side (`both`).
        """
        found = np.asarray(self._features(self._subject.parameters, jnp.asarray(images)))
        patch = self._subject.config.model.patch_size
        patches = (images.shape[1] // patch) * (images.shape[2] // patch)
        return select(found, features, patches)


def load_encoder(path: str, image_size: int | tuple[int, int] | None = None) -> Encoder:
    """As `can_jax.load`."""
    changes = default_evaluation()
    with changes.ignore_type():
        changes.data.image_size = image_size
        changes.model.dtype = "float32"
    mesh = make_mesh(changes.mesh, jax.local_devices()[:1])
    return Encoder(open_subject(path, False, resolve_evaluation(changes), mesh))
