"""The CAN algorithm (arXiv 2210.16870), from a batch of images to the loss and its gradients.

1. Views: `prepare` applies the color augmentation to the crops from the host, and cuts the crops
   into patches.

2. Noise: `draw_noise` draws a noise level and Gaussian noise for each view.

3. Masks: `draw_shuffle` draws a random order of the patches, of which the first ones stay visible.

4. Encode: `forward` runs the encoder on the noisy visible patches, and pools the output tokens.

5. Decode: within `forward`, the decoder predicts all patches, given the noise level.

6. Compare: `losses` collects the targets. Each objective in `can_jax.objectives` computes its loss;
   the contrastive one projects the pooled embeddings first.

7. Sum: `total_loss` adds the weighted losses.

`loss_and_gradients` runs these seven stages, and differentiates the weighted sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from can_jax.objectives.base import Arrays
from can_jax.train.network import owned_heads, statistics_of
from can_jax.train.random_keys import row_keys
from can_jax.train.teacher import teacher_tokens

Metrics = dict[str, Array]
Tree = Any
Embeddings = Float[Array, "rows width"]


class Noise(NamedTuple):
    """Gaussian noise with one noise level per row; a row is one view of an image.

    Attributes:
        sigma: The noise level of each row, a standard deviation in normalized pixel units.
        unit: The standard normal noise, before it is scaled by ``sigma``.
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
        """Return the noise that the decoder learns to predict, and a factor per view that converts
        this noise to the added noise.

        Args:
            kind: The value of ``noise.target``. With ``scaled``, the target is the added noise.
                With ``normalized``, the target is the added noise divided by its root mean square,
                ``sigma_max / sqrt(3)``. With ``unit``, the target is the noise before it is scaled
                by sigma.
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
    """The total loss, metrics, updated batch statistics and gradients of one batch."""

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
        batch_stats: The variables that are not trained: running statistics of BatchNorm, and the
            fixed map of the patch embedding, if any.
        batch: A global batch of images.
        step: The training step, from which the random keys of the batch are derived.
        teacher: The teacher's parameters from `Step.teacher`; None without a teacher.

    Returns:
        The loss, metrics, batch statistics and gradients, and the pooled embedding of each view.
    """
    settings = Photometric.from_settings(config.augment.to_dict())
    inputs = prepare(config, batch, step, settings)
    inputs = with_teacher(config, network, parameters, batch_stats, inputs, teacher)

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

    The views of an image are consecutive rows of the inputs, so they are on one device.

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

    noise = draw_noise(config, sigma_keys, noise_keys, clean.shape[1:])
    shuffle = draw_shuffle(config, mask_keys, clean.shape[1])
    return Inputs(clean, noise, shuffle, batch.label, batch.content)


def draw_noise(
    config: ConfigDict,
    sigma_keys: Key[Array, " rows"],
    noise_keys: Key[Array, " rows"],
    shape: tuple[int, ...],
) -> Noise | None:
    """Draw a noise level, uniform in [0, ``sigma_max``), and standard normal noise for each view.

    Args:
        config: The resolved configuration.
        sigma_keys: The random keys of the noise levels.
        noise_keys: The random keys of the noise.
        shape: The number of patches per view, and the number of pixel values per patch.

    Returns:
        The noise, or None if ``noise.sigma_max`` is 0.
    """
    if not config.noise.sigma_max:
        return None
    level = jax.vmap(lambda key: jax.random.uniform(key, maxval=config.noise.sigma_max))
    normal = jax.vmap(lambda key: jax.random.normal(key, shape))
    return Noise(level(sigma_keys), normal(noise_keys))


def draw_shuffle(
    config: ConfigDict, keys: Key[Array, " rows"], patches: int
) -> Int[Array, "rows patches"]:
    """Draw a random order of the patches of each view, or keep their order if masking is off.

    Args:
        config: The resolved configuration.
        keys: The random keys of the views.
        patches: The number of patches of a view.
    """
    if config.model.mask_ratio:
        return random_shuffle(keys, patches)
    return jnp.broadcast_to(jnp.arange(patches), (*keys.shape, patches))


def with_teacher(
    config: ConfigDict,
    network: nnx.GraphDef,
    parameters: Tree,
    batch_stats: Tree,
    inputs: Inputs,
    teacher: Tree | None,
) -> Inputs:
    """Return the inputs with the tokens of the teacher, or unchanged if there is no teacher.

    The first four arguments and ``teacher`` are those of `loss_and_gradients`.
    """
    if teacher is None:
        return inputs
    tokens = teacher_tokens(config, network, parameters | teacher, batch_stats, inputs.clean)
    return inputs._replace(teacher=tokens)


def forward(
    config: ConfigDict, model: can.CAN, inputs: Inputs, *, decode: bool = True
) -> can.Forward:
    """Run the encoder on the visible patches of each view, and the decoder if there is one.

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
    arrays = Arrays(
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
    return total_loss(arrays._replace(**unread), settings, owned_heads(model, settings))


def total_loss(
    arrays: Arrays, settings: objectives.Settings, heads: objectives.Heads
) -> tuple[Float[Array, ""], Metrics]:
    """Compute the weighted sum of the losses of the active objectives, and all metrics.

    Args:
        arrays: The network outputs and targets of one step, over the global batch.
        settings: The config block of each objective, by name, including its ``weight``.
        heads: The head module of each active objective that has one, by objective name.

    Returns:
        The total loss, and a dict of metrics. The dict holds the unweighted loss ``loss/NAME`` of
        each active objective, ``loss/total``, and the metrics that these objectives return.
    """
    metrics: Metrics = {}
    total = jnp.zeros(())
    for name, objective in objectives.active(settings).items():
        block = settings[name]
        given = (arrays,) if objective.head is None else (arrays, heads[name])
        loss, extra = objective.loss(*given, **{key: block[key] for key in objective.settings})
        metrics |= {f"loss/{name}": loss} | extra
        total += block["weight"] * loss
    return total, metrics | {"loss/total": total}
