"""The train step of a classifier: a head on an encoder that is fine-tuned or frozen."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from can_jax.augment.mixup import mix
from can_jax.augment.photometric import Photometric, augment, normalize, to_float
from can_jax.augment.randaugment import randaugment, random_erasing
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.sharding_rules import path_name
from can_jax.models import can
from can_jax.models.backbones import BACKBONES, encoder_size, encoder_width, position_grid
from can_jax.models.encoder import sincos_2d
from can_jax.models.variant import variant_of
from can_jax.models.vit import LAYER_NORM_EPS, drop_path
from can_jax.optimizers.weight_decay import decay_mask
from can_jax.train.compute_copy import compute_copy, stored_gradients
from can_jax.train.losses import Metrics
from can_jax.train.microbatches import accumulators, split_microbatches
from can_jax.train.network import encoder_network
from can_jax.train.random_keys import random_streams, row_keys
from can_jax.train.step import TrainState

Tree = Any
LARS_TRUST, LARS_MOMENTUM = 0.001, 0.9  # MAE's linear probe uses these values.
BATCH_NORM_EPS, BATCH_NORM_DECAY = 1e-6, 0.9


@dataclasses.dataclass(frozen=True)
class ClassifierStep:
    """The train step of a classifier, which replaces `can_jax.train.step.Step` in the training
    loop.

    Attributes:
        config: The configuration of the classifier's run, with the keys of a pretraining run.
        settings: The config block ``classify`` of the evaluation.
        features: The input of the head: ``class``, ``patches``, ``all`` or ``both``; see
            `PretrainedEncoder.select`.
        classes: The number of classes, which is also the number of logits.
        schedule: The learning rate as a function of the step.
    """

    config: ConfigDict
    settings: ConfigDict
    features: str
    classes: int
    schedule: optax.Schedule

    @property
    def width(self) -> int:
        """The number of input features of the head."""
        return encoder_width(self.config) * (2 if self.features == "both" else 1)

    @property
    def flops_per_image(self) -> int:
        """The FLOPs of a train step per image: those of 3 forward passes, or of 1 if the encoder is
        frozen."""
        encoder = BACKBONES.get(self.config.model.backbone)
        patches = math.prod(can.grid_of(self.config))
        forward = encoder.flops(self.config, can.pixels_per_patch(self.config), patches)
        return (1 if self.settings.freeze_encoder else 3) * forward

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The gradient transformation; `train` multiplies its updates by the learning rate."""
        settings = self.settings
        decayed = optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)
        if settings.optimizer == "lars":
            # `optax.lars` applies the learning rate before the momentum, MAE after it.
            trust = optax.scale_by_trust_ratio(trust_coefficient=LARS_TRUST)
            parts = [decayed, optax.masked(trust, decay_mask), optax.trace(LARS_MOMENTUM)]
        else:
            parts = [optax.scale_by_adam(0.9, settings.beta2), decayed]
        if settings.clip_norm:
            parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
        transform = optax.chain(*parts)
        if not settings.freeze_encoder:
            return optax.chain(transform, optax.stateless(self._by_layer))
        labels = {"encoder": "frozen", "head": "trained"}
        return optax.partition({"trained": transform, "frozen": optax.set_to_zero()}, labels)

    def _by_layer(self, updates: Tree, _: Any) -> Tree:
        """Scale updates by layer-wise learning-rate decay (arXiv 2106.08254).

        The updates of a layer are multiplied by ``layer_decay`` to the power of its distance to the
        head. The distance of a layer to the head is 1 for the last block, ``depth`` for the first
        block, and ``depth + 1`` for the embeddings. Updates of the final norm and the head are not
        scaled.
        """
        depth, decay = encoder_size(self.config.model).depth, self.settings.layer_decay

        def scaled(path: tuple[Any, ...], update: Array) -> Array:
            name = path_name(path)
            if name.startswith("encoder/blocks/"):
                powers = decay ** jnp.arange(depth, 0, -1.0, dtype=update.dtype)
                return update * powers.reshape(-1, *[1] * (update.ndim - 1))
            is_embedding = name.startswith("encoder/") and not name.startswith("encoder/norm")
            return update * decay ** (depth + 1) if is_embedding else update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    def fresh(self) -> TrainState:
        """Initialize a train state with a random head, and an encoder whose parameters are zero.

        `starting_from` sets the parameters of the encoder. As in MAE, the head's kernel has a
        standard deviation of 0.01 if the encoder is frozen, else 2e-5.
        """
        key = random_streams(self.config.seed)[0]
        deviation = 0.01 if self.settings.freeze_encoder else 2e-5
        kernel = deviation * jax.random.normal(key, (self.width, self.classes))
        head: dict[str, Any] = {"head": {"kernel": kernel, "bias": jnp.zeros(self.classes)}}
        statistics: dict[str, Any] = {}
        if self.settings.head_norm == "layer":
            head["norm"] = {"scale": jnp.ones(self.width), "bias": jnp.zeros(self.width)}
        if self.settings.head_norm == "batch":
            statistics = {"mean": jnp.zeros(self.width), "var": jnp.ones(self.width)}
        shapes = nnx.to_pure_dict(nnx.state(encoder_network(self.config), nnx.Param))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        parameters = {**zeros, "head": head}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            batch_stats=statistics,
            optimizer={"transform": self.optimizer.init(parameters)}
            | ({"average": parameters} if self.settings.ema_decay else {}),
            skipped=jnp.zeros((), jnp.int32),
        )

    def starting_from(self, encoder: Tree, state: TrainState) -> TrainState:
        """Return ``state`` with the parameters of a pretrained encoder.

        If position embeddings are trained and ``encoder`` has none, they are initialized with MAE's
        sine-cosine table.
        """
        own = state.parameters["encoder"]
        if "positions" in own and "positions" not in encoder:
            table = sincos_2d(position_grid(self.config), encoder_size(self.config.model).width)
            encoder = {**encoder, "positions": table.astype(own["positions"].dtype)}

        def put(parameters: Tree) -> Tree:
            placed = jax.tree.map(
                lambda x, old: jax.device_put(x, old.sharding), encoder, parameters["encoder"]
            )
            # The train step donates its state, so the state must not share buffers with the moving
            # average or with the caller's encoder.
            return parameters | {"encoder": jax.tree.map(jnp.copy, placed)}

        optimizer = dict(state.optimizer)
        if "average" in optimizer:
            optimizer["average"] = put(optimizer["average"])
        return dataclasses.replace(state, parameters=put(state.parameters), optimizer=optimizer)

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Augment and mix the images of a batch, and apply one optimizer step.

        The update is skipped if the loss, the gradient norm or a value of the updated state is not
        finite. Gradients are averaged over ``config.accumulation.microbatches`` equal parts of the
        batch.
        """
        copied = compute_copy(self.config, state.parameters, {})

        def part_of(statistics: Tree, part: Batch, number: Array) -> Any:
            images, targets, key = self._inputs(part, state.step, number)

            def loss(parameters: Tree) -> tuple[Array, tuple[Array, Tree]]:
                logits, new = self._logits(parameters, statistics, images, key)
                right = jnp.mean(logits.argmax(axis=1) == targets.argmax(axis=1))
                return optax.softmax_cross_entropy(logits, targets).mean(), (right, new)

            return jax.value_and_grad(loss, has_aux=True)(copied)

        count = self.config.accumulation.microbatches
        if count == 1:
            (total, (right, statistics)), gradient = part_of(state.batch_stats, batch, jnp.int32(0))
        else:

            def add(carry: tuple[Tree, Tree], part: tuple[Batch, Array]) -> Any:
                sums, statistics = carry
                (total, (right, statistics)), gradient = part_of(statistics, *part)
                sums = jax.tree.map(lambda a, b: a + b / count, sums, gradient)
                return (sums, statistics), (total, right)

            zeros = jax.tree.map(jnp.zeros_like, accumulators(copied))
            parts = jax.tree.map(lambda x: split_microbatches(x, count), batch)
            (gradient, statistics), logged = jax.lax.scan(
                add, (zeros, state.batch_stats), (parts, jnp.arange(count))
            )
            total, right = (x.mean() for x in logged)
        gradient = stored_gradients(self.config, gradient, state.parameters)
        rate = self.schedule(state.step)
        updates, transform = self.optimizer.update(
            gradient, state.optimizer["transform"], state.parameters
        )
        updated = optax.apply_updates(state.parameters, jax.tree.map(lambda u: -rate * u, updates))
        optimizer = {"transform": transform}
        if decay := self.settings.ema_decay:
            average = state.optimizer["average"]
            optimizer["average"] = optax.incremental_update(updated, average, 1 - decay)
        norm = optax.global_norm(gradient)
        new = state.updated(
            jnp.isfinite(total) & jnp.isfinite(norm), updated, statistics, optimizer
        )
        return new, {
            "loss/total": total,
            "train/top1": 100 * right,
            "learning_rate": rate,
            "grad_norm": norm,
            "skipped_steps": new.skipped,
        }

    def logits(self, state: TrainState, images: Array) -> Float[Array, "images classes"]:
        """Return the logits of unaugmented uint8 images.

        The moving average (EMA) of the parameters is used if the state holds one.
        """
        parameters = state.optimizer.get("average", state.parameters)
        pixels = normalize(to_float(images), self.config.augment.mean, self.config.augment.std)
        return self._logits(parameters, state.batch_stats, pixels, None)[0]

    def _inputs(
        self, batch: Batch, step: Array, part: Array
    ) -> tuple[Array, Array, Key[Array, ""]]:
        """Return augmented and mixed images, soft targets, and the random key of stochastic depth.

        Args:
            batch: The images and labels of a microbatch.
            step: The index of the training step, from which random keys are derived.
            part: The index of the microbatch in its batch.
        """
        settings, means = self.settings, self.config.augment
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(
            row_keys(self.config.seed, step, batch)
        )
        images = to_float(batch.views).reshape(-1, *batch.views.shape[2:])
        images = augment(images, keys[:, 0], Photometric(flip=0.5))
        operations, magnitude, deviation = settings.randaugment
        fill = jnp.broadcast_to(jnp.asarray(means.mean, images.dtype), images.shape[-1:])
        if operations:

            def drawn(image: Array, key: Array) -> Array:
                planes = randaugment(
                    image.transpose(2, 0, 1), key, operations, magnitude, deviation, fill
                )
                return planes.transpose(1, 2, 0)

            images = jax.vmap(drawn)(images, keys[:, 1])
        images = normalize(images, means.mean, means.std)
        if settings.random_erasing:
            erase = jax.vmap(lambda x, key: random_erasing(x, key, settings.random_erasing))
            images = erase(images, keys[:, 2])
        smooth = settings.label_smoothing
        targets = (1 - smooth) * jax.nn.one_hot(batch.label, self.classes) + smooth / self.classes
        key, mix_key = jax.random.split(
            jax.random.fold_in(jax.random.fold_in(random_streams(self.config.seed)[1], step), part)
        )
        images, targets = mix(images, targets, mix_key, settings.mixup, settings.cutmix)
        return images, targets, key

    def _logits(
        self, parameters: Tree, statistics: Tree, pixels: Array, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "images classes"], Tree]:
        """Return the logits and the updated BatchNorm running statistics.

        With a ``key``, the network runs in training mode: stochastic depth is active, and the
        head's BatchNorm uses batch statistics.
        """
        settings = self.settings
        network = nnx.graphdef(encoder_network(self.config))
        encoder = nnx.merge(network, {"encoder": parameters["encoder"]}, {}, copy=True)
        drop = None
        if settings.drop_path and key is not None:
            depth = encoder_size(self.config.model).depth
            drop = drop_path(key, settings.drop_path, depth, len(pixels))
        # As in MAE, tokens are not normalized if the head normalizes their mean.
        inner = not (settings.head_norm == "layer" and self.features in ("patches", "all"))
        options = {"drop": drop, "norm": inner} if self.config.model.backbone == "vit" else {}
        tokens = encoder.encode(pixels, **options).astype(jnp.float32)
        kinds = ("class", "patches") if self.features == "both" else (self.features,)
        pooled = [can.pool(tokens, kind) for kind in kinds]
        model = self.config.model
        if inner and model.backbone == "vit" and variant_of(model).norm == "pooled":
            pooled = [encoder.encoder.norm(one) for one in pooled]
        x = jnp.concatenate(pooled, axis=1)
        if settings.freeze_encoder:
            x = jax.lax.stop_gradient(x)
        if settings.head_norm == "layer":
            norm = parameters["head"]["norm"]
            x = (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(
                x.var(1, keepdims=True) + LAYER_NORM_EPS
            )
            x = x * norm["scale"] + norm["bias"]
        if settings.head_norm == "batch":
            mean, variance = statistics["mean"], statistics["var"]
            if key is not None:
                mean, variance = x.mean(axis=0), x.var(axis=0)
                # As in PyTorch, the running variance is unbiased, but the batch variance is not.
                unbiased = variance * (len(x) / max(len(x) - 1, 1))
                statistics = {
                    "mean": BATCH_NORM_DECAY * statistics["mean"] + (1 - BATCH_NORM_DECAY) * mean,
                    "var": BATCH_NORM_DECAY * statistics["var"] + (1 - BATCH_NORM_DECAY) * unbiased,
                }
            x = (x - mean) * jax.lax.rsqrt(variance + BATCH_NORM_EPS)
        head = parameters["head"]["head"]
        return x @ head["kernel"] + head["bias"], statistics
