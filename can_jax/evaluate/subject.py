"""What is evaluated: an encoder, where it comes from, and how to ask it for features."""

import dataclasses
import hashlib
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
from can_jax.initial import newest_state
from can_jax.model import can
from can_jax.parallel.rules import path_name, shardings
from can_jax.step import encoder_network, make_step
from can_jax.weights.reading import read_arrays
from can_jax.weights.torch_layout import encoder_sizes, from_torch


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
        first, mean = np.split(found, 2, axis=1)
        if kind == "all":
            return (first + self.patches * mean) / (self.patches + 1)
        return {"class": first, "patches": mean, "both": found}[kind]


def open_subject(checkpoint: str, untrained: bool, changes: ConfigDict, mesh: Mesh) -> Subject:
    """The encoder of a run directory, or of a file of weights under MAE's and timm's names.

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
    run = resolve(read_config(place)) if place.is_dir() else _config_of_file(place, changes)
    config = changed(run, changes)
    wanted = nnx.to_pure_dict(nnx.state(encoder_network(config), nnx.Param))
    step = None
    if untrained:
        parameters = make_step(run, lambda _: 0.0).fresh().parameters
        step = 0
    elif place.is_dir():
        step, state = newest_state(place, make_step(run, lambda _: 0.0), mesh)
        parameters = state.parameters
    else:
        parameters = from_torch(read_arrays(place), wanted)
    encoder = {"encoder": parameters["encoder"]}
    identity = identity_of(place, step, config, encoder)
    places = shardings(wanted, mesh)
    placed = jax.tree.map(lambda x, where: jax.device_put(np.asarray(x), where), encoder, places)
    return Subject(config, placed, identity)


def identity_of(
    place: epath.Path, step: int | None, config: ConfigDict, parameters: Any
) -> dict[str, Any]:
    """What tells one set of weights from another."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        digest.update(path_name(path).encode() + np.asarray(leaf).tobytes())
    size = can.encoder_size(config.model)
    return {
        "path": str(place),
        "step": step,
        "sha256": digest.hexdigest(),
        "model": dataclasses.asdict(size) | {"patch_size": config.model.patch_size},
        "image_size": list(config.data.image_size),
    }


def _config_of_file(place: epath.Path, changes: ConfigDict) -> ConfigDict:
    """What stands for the configuration of a file of weights, from their shapes."""
    sizes = encoder_sizes(read_arrays(place))
    config = default_config()
    config.total_steps = 1
    config.data.update(source="shapes", image_size=14 * sizes.patch_size, channels=sizes.channels)
    config.model.update(
        width=sizes.width,
        depth=sizes.depth,
        heads=changes.model.heads or max(1, sizes.width // 64),
        patch_size=sizes.patch_size,
    )
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
