"""The CAN algorithm (arXiv 2210.16870), from a batch of images to the loss and its gradients.

`prepare` augments the views of each image and draws noise and masks. `forward` encodes the visible
noisy patches, pools their embeddings and decodes all patches. `losses` computes the contrastive,
reconstruction and denoising losses and their weighted sum. `loss_and_gradients` calls `prepare`,
`forward` and `losses`, and differentiates the total loss.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt32
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.augment.photometric import Photometric, augment, normalize, to_float
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models import can
from can_jax.models.masking import (
    gather_patches,
    hidden_mask,
    patchify,
    random_shuffle,
    visible_count,
)
from can_jax.objectives.rows import normalize as unit_length

Metrics = dict[str, Array]
Tree = Any
Embeddings = Float[Array, "rows width"]


class Noise(NamedTuple):
    """Gaussian noise with a separate noise level for each row, which is one view of an image.

    Attributes:
        sigma: The noise level of each row, a standard deviation in normalized pixel units.
        unit: The noise before it is scaled by ``sigma``, from the standard normal distribution.
    """

    sigma: Float[Array, " rows"]
    unit: Float[Array, "rows patches pixels"]  # standard normal

    @property
    def scaled(self) -> Float[Array, "rows patches pixels"]:
        """The noise that is added to the patches, in normalized pixel units."""
        return self.sigma[:, None, None] * self.unit

    def target(
        self, kind: str, sigma_max: float
    ) -> tuple[Float[Array, "rows patches pixels"], Float[Array, " rows"]]:
        """Return the target of the decoder, and the factor per row that rescales it to the noise.

        Args:
            kind: The value of ``noise.target``: ``scaled`` for the added noise, ``normalized`` for
                the added noise divided by its root mean square ``sigma_max / sqrt(3)``, or ``unit``
                for the noise before it is scaled by sigma.
            sigma_max: The largest noise level, as a standard deviation in normalized pixels.
        """
        if kind == "unit":
            return self.unit, self.sigma
        rms = sigma_max / 3**0.5 if kind == "normalized" else 1.0
        return self.scaled / rms, jnp.full_like(self.sigma, rms)


class Inputs(NamedTuple):
    """The augmented inputs of the network and its losses; a row is one view of an image.

    Attributes:
        clean: The normalized pixels of every patch, without noise.
        noise: The noise to add to ``clean``; None if ``noise.sigma_max`` is 0.
        shuffle: A permutation of the patch indices of each row, visible patches first.
        labels: The class label of each image; -1 if unknown.
        contents: The content ID of each image from `Batch.content`, or None if not requested.
        teacher: The result of `teacher_tokens`; None unless an objective reads it.
    """

    clean: Float[Array, "rows patches pixels"]
    noise: Noise | None
    shuffle: Int[Array, "rows patches"]
    labels: Int[Array, " images"]
    contents: UInt32[Array, " images"] | None = None
    teacher: Float[Array, "rows patches width"] | None = None

    @property
    def noisy(self) -> Float[Array, "rows patches pixels"]:
        """The patches with their noise added."""
        return self.clean if self.noise is None else self.clean + self.noise.scaled


class StepOutput(NamedTuple):
    """The total loss, metrics, updated BatchNorm statistics and gradients of one batch."""

    total: Float[Array, ""]
    metrics: Metrics
    batch_stats: Tree
    gradients: Tree


def loss_and_gradients(
    config: ConfigDict,
    network: nnx.GraphDef,
    parameters: Tree,
    batch_stats: Tree,
    batch: Batch,
    step: Int[Array, ""],
    teacher: Tree | None = None,
) -> tuple[StepOutput, Embeddings]:
    """Compute the losses and gradients of a batch, without microbatches.

    Args:
        config: The resolved configuration.
        network: The `nnx.GraphDef` of the network.
        parameters: The parameters of the network, as a nested dict.
        batch_stats: The running statistics of BatchNorm.
        batch: A global batch of images.
        step: The training step, from which the random keys of the batch are derived.
        teacher: The parameters of the teacher's encoder, if an objective reads its tokens.

    Returns:
        The loss, metrics and gradients, and the pooled embedding of each row.
    """
    settings = Photometric.from_settings(config.augment.to_dict())
    inputs = prepare(config, batch, step, settings)
    if teacher is not None:
        encoder = nnx.merge(network, parameters | teacher, batch_stats, copy=True).encoder
        inputs = inputs._replace(teacher=teacher_tokens(config, encoder, inputs.clean))

    def loss(parameters: Tree) -> tuple[Array, tuple[Metrics, Tree, Array]]:
        model = nnx.merge(network, parameters, batch_stats, copy=True)
        outputs = forward(config, model, inputs)
        total, metrics = losses(config, model, outputs, inputs)
        return total, (metrics, statistics_of(model), outputs.pooled)

    gradient = jax.value_and_grad(loss, has_aux=True)
    (total, (metrics, statistics, pooled)), gradients = gradient(parameters)
    return StepOutput(total, metrics, statistics, gradients), pooled


def prepare(
    config: ConfigDict, batch: Batch, step: Int[Array, ""], settings: Photometric
) -> Inputs:
    """Convert uint8 images to inputs: augment, normalize, patchify, and draw noise and masks.

    Rows are ordered by image and then by view, so the views of an image are on one device.

    Args:
        config: The resolved configuration.
        batch: A global batch of images.
        step: The training step, from which the random keys are derived.
        settings: The photometric augmentation to apply to each view.
    """
    rows = to_float(batch.views).reshape(-1, *batch.views.shape[2:])
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(row_keys(config.seed, step, batch))
    augment_keys, sigma_keys, noise_keys, mask_keys = (keys[:, i] for i in range(4))
    views = augment(constrain_batch_sharding(rows), augment_keys, settings)
    views = normalize(views, config.augment.mean, config.augment.std)
    clean = constrain_batch_sharding(patchify(views, config.model.patch_size))

    noise = None
    if config.noise.sigma_max:
        strength = jax.vmap(lambda key: jax.random.uniform(key, maxval=config.noise.sigma_max))
        normal = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))
        noise = Noise(strength(sigma_keys), normal(noise_keys))
    if config.model.mask_ratio:
        shuffle = random_shuffle(mask_keys, clean.shape[1])
    else:
        shuffle = jnp.broadcast_to(jnp.arange(clean.shape[1]), clean.shape[:2])
    return Inputs(clean, noise, shuffle, batch.label, batch.content)


def teacher_tokens(
    config: ConfigDict, encoder: Any, clean: Float[Array, "rows patches pixels"]
) -> Float[Array, "rows patches width"]:
    """Return the patch tokens of a teacher for whole views without noise, in row-major order.

    Args:
        config: The resolved configuration.
        encoder: The encoder with the teacher's parameters.
        clean: All patches of each row.
    """
    index = jnp.broadcast_to(np.arange(clean.shape[1]), clean.shape[:2])
    patches = constrain_batch_sharding(clean.astype(config.model.dtype))
    return encoder(patches, index, can.grid_of(config))[:, 1:]


def forward(
    config: ConfigDict, model: can.CAN, inputs: Inputs, *, decode: bool = True
) -> can.Forward:
    """Run the encoder on the visible patches of each row, and the decoder if there is one.

    Args:
        config: The resolved configuration.
        model: The network.
        inputs: The inputs from `prepare`.
        decode: Whether to run the decoder if the network has one.
    """
    patches = inputs.noisy
    if config.model.mask_ratio:
        visible = visible_count(patches.shape[1], config.model.mask_ratio)
        patches = gather_patches(patches, inputs.shuffle[:, :visible])
    sigma = None if inputs.noise is None else inputs.noise.sigma
    shown = (constrain_batch_sharding(patches), inputs.shuffle, sigma)
    return model(*shown, grid=can.grid_of(config), decode=decode)


def losses(
    config: ConfigDict,
    model: can.CAN,
    outputs: can.Forward,
    inputs: Inputs,
    settings: objectives.Settings | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the weighted total loss of a batch and the metrics of its objectives.

    Args:
        config: The resolved configuration.
        model: The network, which also holds the heads of the objectives.
        outputs: The outputs from `forward`.
        inputs: The inputs from `prepare`.
        settings: The config blocks of the objectives to compute; ``config.objective`` by default.
    """
    if settings is None:
        settings = config.objective.to_dict()
    images = inputs.labels.shape[0]

    def by_image(rows: Array | None) -> Array | None:
        return None if rows is None else rows.reshape(images, -1, *rows.shape[1:])

    noise = scale = None
    if inputs.noise is not None:
        noise, scale = inputs.noise.target(config.noise.target, config.noise.sigma_max)
    arrays = objectives.Arrays(
        tokens=by_image(outputs.latent),
        pooled=by_image(outputs.pooled),
        prediction=outputs.prediction,
        decoded=outputs.decoded,
        teacher=inputs.teacher,
        clean=inputs.clean,
        noise=noise,
        noise_scale=scale,
        hidden=hidden_mask(inputs.shuffle, outputs.latent.shape[1] - 1),
        labels=inputs.labels,
        contents=inputs.contents,
    )
    unread = dict.fromkeys(set(arrays._fields) - objectives.reads(settings))
    return objectives.total_loss(arrays._replace(**unread), settings, owned_heads(model, settings))


def owned_heads(model: can.CAN, settings: objectives.Settings) -> objectives.Heads:
    """Return the head module of each active objective that has one, by objective name."""
    names = objectives.head_names(settings)
    return {objective: getattr(model, name) for objective, name in names.items()}


def heads(config: ConfigDict) -> dict[str, can.HeadBuilder]:
    """Return the functions that build the heads, in the order in which the heads are created.

    The random initialization depends on this order. Only heads and decoders that the active
    objectives need are included.
    """
    settings = config.objective.to_dict()
    reads, active = objectives.reads(settings), objectives.active(settings)
    needed: dict[str, Any] = {
        head: active[name].head for name, head in objectives.head_names(settings).items()
    }
    if "noise" in reads and config.noise.sigma_max and config.noise.embed_level:
        needed["noise_level"] = can.BUILDERS["noise_level"]
    if "prediction" in reads:
        needed["decoder"] = can.BUILDERS["decoder"]
    elif "decoded" in reads:
        needed["decoder"] = functools.partial(can.BUILDERS["decoder"], predicts=False)
    return needed


def random_streams(seed: int | Int[Array, ""]) -> Key[Array, " 2"]:
    """Return two random keys, for initializing the parameters and for the training steps."""
    return jax.random.split(jax.random.key(seed))


def row_keys(seed: int | Int[Array, ""], step: Int[Array, ""], batch: Batch) -> Key[Array, " rows"]:
    """Derive a random key for each row from the seed, step, image position and view index.

    The random keys depend on neither the mesh nor resumes.
    """
    views = batch.views.shape[1]
    key = jax.random.fold_in(random_streams(seed)[1], step)
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.position)
    by_view = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(by_view, (0, None))(image_keys, jnp.arange(views)).reshape(-1)


def statistics_of(model: can.CAN) -> Tree:
    """Return the running statistics of all BatchNorm layers, as a nested dict."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def embedding_metrics(pooled: Float[Array, "rows width"]) -> Metrics:
    """Compute metrics that reveal collapse from the L2-normalized pooled embeddings.

    ``embedding/std`` is the standard deviation over the batch, averaged over dimensions and
    multiplied by ``sqrt(width)``. The value is about 1 for embeddings spread evenly over the sphere
    and 0 if all are equal. ``embedding/gram`` is the (width, width) matrix from which the logger
    computes the effective rank.
    """
    unit = unit_length(pooled.astype(jnp.float32))
    rows, width = unit.shape
    return {
        "embedding/std": unit.std(axis=0).mean() * width**0.5,
        "embedding/gram": unit.T @ unit / rows,
    }
