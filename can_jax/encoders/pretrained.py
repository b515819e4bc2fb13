"""Pretrained encoders for evaluation: loading of weights, and extraction of features."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from can_jax.augment.photometric import normalize, to_float
from can_jax.checkpoint.run_directory import find_checkpoint, newest_state, read_run
from can_jax.config.resolve import default_config, resolve_encoder
from can_jax.distributed.mesh import replicated
from can_jax.distributed.sharding_rules import named_leaves, shardings
from can_jax.models.backbones import (
    describe,
    encoder_size,
    keep_position_grid,
    require_vit,
)
from can_jax.models.can import grid_of
from can_jax.models.masking import patch_grid
from can_jax.models.patch_embed import embedding_kind, fold
from can_jax.models.variant import variant_of
from can_jax.train.network import encoder_network
from can_jax.train.step import initial_encoder, stored_step
from can_jax.utils.errors import UserError
from can_jax.weights.accounting import refuse_unused
from can_jax.weights.descriptions import is_run
from can_jax.weights.digest import sha256_of
from can_jax.weights.layouts import Arrays
from can_jax.weights.library_configs import Facts
from can_jax.weights.read_weights import channel_values, complete, read_weights
from can_jax.weights.torch_layout import from_torch


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """A pretrained encoder: its configuration, parameters and network.

    Attributes:
        config: The configuration of the training run, or an equivalent configuration for weights of
            another library.
        parameters: The encoder's parameters on the device mesh, without those of projection heads.
        graph: The `nnx.GraphDef` of the encoder's network, which holds no arrays.
        identity: The dict that describes the weights in `results.json`.
    """

    config: ConfigDict
    parameters: Any
    graph: nnx.GraphDef
    identity: dict[str, Any]

    def tokens(
        self, parameters: Any, images: UInt8[Array, "images height width channels"]
    ) -> Float[Array, "images tokens units"]:
        """Return the encoder's output tokens for unmasked uint8 images, class token first."""
        model = nnx.merge(self.graph, parameters, {}, copy=True)
        augment = self.config.augment
        tokens = model.encode(normalize(to_float(images), augment.mean, augment.std))
        patches = math.prod(patch_grid(images.shape[1:3], model.patch_size))
        assert tokens.shape[1] == patches + 1, "an evaluation must not mask patches"
        return tokens

    def features(self, parameters: Any, images: Any) -> Float[Array, "images features"]:
        """Return the class token and the mean patch token of each image, concatenated as `select`
        expects."""
        tokens = self.tokens(parameters, images).astype(jnp.float32)
        return jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)

    @property
    def patches(self) -> int:
        """The number of patches per image."""
        return math.prod(grid_of(self.config))

    def select(
        self, outputs: Float[np.ndarray, "images features"], kind: str
    ) -> Float[np.ndarray, "images width"]:
        """Convert the output of `features` to the requested kind of features.

        Args:
            outputs: The class token and the mean patch token of each image, concatenated; an array
                (images, 2 * width).
            kind: ``class`` for the class token, ``patches`` for the mean patch token, ``all`` for
                the mean of all tokens, or ``both`` for the concatenation of ``class`` and
                ``patches``.
        """
        first, mean = np.split(outputs, 2, axis=1)
        if kind == "all":
            pooled = [(first + self.patches * mean) / (self.patches + 1)]
        else:
            pooled = {"class": [first], "patches": [mean], "both": [first, mean]}[kind]
        if self._normalizes_mean:
            pooled = [self._normalized(one) for one in pooled]
        return np.concatenate(pooled, axis=1)

    @property
    def _normalizes_mean(self) -> bool:
        model = self.config.model
        return model.backbone == "vit" and variant_of(model).norm == "pooled"

    def _normalized(
        self, x: Float[np.ndarray, "images width"]
    ) -> Float[np.ndarray, "images width"]:
        """Apply the encoder's final LayerNorm to pooled tokens, with NumPy on the host."""
        norm = jax.device_get(self.parameters["encoder"]["norm"])
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + variant_of(self.config.model).epsilon)
        return x * norm["scale"] + norm["bias"]


def open_encoder(
    checkpoint: str,
    untrained: bool,
    changes: ConfigDict,
    mesh: Mesh,
    warn: Callable[[str], None] = logging.warning,
) -> PretrainedEncoder:
    """Load an encoder from a training run, an export, or the weights of another library.

    Args:
        checkpoint: The path of a run directory, of one of its checkpoints, of an export, of a model
            folder of Hugging Face or timm, or of a weight file.
        untrained: Whether to return the encoder with random initial parameters instead of trained
            ones.
        changes: The resolved configuration of the evaluation, whose blocks ``data``, ``model`` and
            ``mesh`` override those of the run.
        mesh: The device mesh on which to place the parameters.
        warn: A function that is called with the text of each warning, for example that the mean and
            std of the images are assumed.

    Raises:
        UserError: The weights cannot be read, or do not match the requested model or image size.
    """
    path, step = find_checkpoint(checkpoint)
    overrides = changes.model
    from_run = is_run(path)
    if from_run:
        run = with_normalization(read_run(path), overrides, path)
    else:
        weights = complete(
            read_weights(path),
            overrides.heads,
            overrides.mean,
            overrides.std,
            changes.data.image_size,
            overrides.gelu,
        )
        run = config_of_facts(weights.facts)
    if (size := changes.data.image_size) and any(side % run.model.patch_size for side in size):
        raise UserError(
            f"{checkpoint}: image_size={size[0]}x{size[1]} is not a multiple of the patch size "
            f"{run.model.patch_size}"
        )
    config = changed(run, changes)
    network = encoder_network(config)
    expected = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    targets = shardings(expected, mesh)
    statistics: Any = {}
    # An untrained encoder uses the fixed map of its run.
    mapped = from_run and embedding_kind(run) != "linear"
    if from_run and (mapped or not untrained):
        # Only the encoder is read; neither heads nor optimizer moments are built.
        # Each process reads all values, to hash and fold them, even if the mesh shards them.
        whole = replicated(mesh)
        shapes: Any = jax.tree.map(lambda leaf: _abstract(leaf, whole), expected)
        averaged = run.optimizer.ema_decay > 0 and overrides.average
        template = {"optimizer": {"average": shapes}} if averaged else {"parameters": shapes}
        if mapped:
            fixed = nnx.to_pure_dict(nnx.state(encoder_network(run), nnx.BatchStat))
            template["batch_stats"] = jax.tree.map(lambda leaf: _abstract(leaf, whole), fixed)
        step, state = newest_state(path, template, step=step, partial=True)
        parameters = state["optimizer"]["average"] if averaged else state["parameters"]
        statistics = state.get("batch_stats", {})
    if untrained:
        parameters, step = {"encoder": initial_encoder(stored_step(run))}, 0
    elif not from_run:
        try:
            parameters, step = from_arrays(weights.arrays, expected), weights.facts.get("step")
        except UserError as error:
            raise UserError(f"{weights.place}: {error}") from error
    parameters, _ = fold(parameters, statistics)
    encoder = {"encoder": parameters["encoder"]}
    identity = identity_of(path, step, config, encoder)
    if not from_run:
        for line in weights.warnings:
            warn(line)
    placed = jax.tree.map(
        lambda x, sharding: jax.device_put(np.asarray(x), sharding), encoder, targets
    )
    return PretrainedEncoder(config, placed, nnx.graphdef(network), identity)


def _abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def identity_of(
    path: epath.Path, step: int | None, config: ConfigDict, parameters: Any
) -> dict[str, Any]:
    """Return the dict that describes an encoder's weights in `results.json`.

    Args:
        path: The path from which the weights were read.
        step: The training step at which the weights were saved; None if unknown.
        config: The configuration of the encoder.
        parameters: The tree of the encoder's parameters, which is hashed.
    """
    return {
        "path": str(path),
        "step": step,
        "sha256": sha256_of(parameters),
        "model": describe(config) | {"patch_size": config.model.patch_size},
        "image_size": list(config.data.image_size),
        "mean": list(config.augment.mean),
        "std": list(config.augment.std),
    }


def from_arrays(arrays: Arrays, like: Any) -> Any:
    """Convert named arrays to a parameter tree; the names are those of MAE's PyTorch code or of
    can_jax.

    Args:
        arrays: A mapping from names to arrays.
        like: A tree with the structure, shapes and dtypes of the expected parameters.

    Raises:
        UserError: An array is missing, has an unexpected shape, or does not belong to the tree.
    """
    leaves = named_leaves(like)
    if next(iter(leaves)) not in arrays:
        tree = from_torch(arrays, like)
    else:
        refuse_unused(arrays, list(leaves))
        for name, leaf in leaves.items():
            array = arrays.get(name)
            if array is None:
                raise UserError(f"the weights have no {name}, which this encoder requires")
            if array.shape != leaf.shape:
                raise UserError(
                    f"{name} has shape {array.shape}, but this encoder requires {leaf.shape}"
                )
        tree = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
    return jax.tree.map(lambda array, leaf: np.asarray(array, leaf.dtype), tree, like)


def config_of_facts(facts: Facts) -> ConfigDict:
    """Return a configuration that describes weights of another library as if they came from a run.

    Args:
        facts: The architecture and normalization of the weights, as
            `can_jax.weights.read_weights.complete` returns them.
    """
    config = default_config()
    config.total_steps = 1
    size = tuple(facts["image_size"])
    config.data.update(source="shapes", image_size=size, channels=facts["channels"])
    names = ("width", "depth", "heads", "patch_size")
    config.model.update({name: facts[name] for name in names}, dtype="float32")
    options = {name: _plain(value) for name, value in sorted(facts["options"].items())}
    config.model.backbone_options = tuple(options.items())
    config.augment.update(mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    if facts["channels"] != 3:
        config.augment.update(saturation=0.0, hue=0.0, grayscale=0.0)
    return resolve_encoder(config)


def _plain(value: Any) -> Any:
    """Convert a list to a tuple, the type of sequences in configurations; return other values
    unchanged."""
    return tuple(value) if isinstance(value, list) else value


def with_normalization(run: ConfigDict, given: ConfigDict, path: epath.Path) -> ConfigDict:
    """Return a run's configuration, with the mean and std replaced by those that an evaluation
    sets.

    The number of heads and the form of GELU that an evaluation sets must equal those of the run.

    Args:
        run: The configuration of the run.
        given: The config block `model` of the evaluation.
        path: The path of the run directory, to show in error messages.

    Raises:
        UserError: The mean or std is invalid, or ``given.heads`` or ``given.gelu`` differs from the
            run's value. ``given.heads`` or ``given.gelu`` is set, but the backbone is not the ViT.
    """
    for name in ("heads", "gelu"):
        if given[name] is not None:
            require_vit(run, f"{name}={given[name]} for {path}")
    heads = encoder_size(run.model).heads
    if given.heads not in (None, heads):
        raise UserError(f"{path}: heads={given.heads}: the run has {heads} heads; omit heads")
    if given.gelu is not None and given.gelu != (own := variant_of(run.model).gelu):
        raise UserError(f"{path}: gelu={given.gelu}: the run has gelu={own}; omit gelu")
    config = run.copy_and_resolve_references()
    with config.ignore_type():
        for name in ("mean", "std"):
            if given[name] is not None:
                try:
                    values = channel_values(name, given[name], run.data.channels)
                except UserError as error:
                    raise UserError(f"{path}: {error}") from error
                config.augment[name] = tuple(values)
    return resolve_encoder(config)


def changed(run: ConfigDict, changes: ConfigDict) -> ConfigDict:
    """Return a run's configuration, with the data, image size, dtype and mesh that an evaluation
    sets.

    Raises:
        UserError: The number of image channels differs between the evaluation and the run.
    """
    config = run.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        if changes.data.source is not None:
            shared = set(config.data) - {"image_size"}
            config.data.update({k: v for k, v in changes.data.items() if k in shared})
        if changes.data.image_size is not None:
            keep_position_grid(config)
            config.data.image_size = changes.data.image_size
        if changes.model.dtype is not None:
            config.model.dtype = changes.model.dtype
        config.model.remat, config.mesh = "none", changes.mesh
        config.model.patch_embed = "linear"  # since `fold` has merged the fixed map
        config.init_from = None
    if config.data.channels != run.data.channels:
        raise UserError(
            f"config.data.channels={config.data.channels}: the encoder takes "
            f"{run.data.channels} channels"
        )
    return resolve_encoder(config)
