"""The gradient of a batch: at once, or in microbatches where memory is short.

In microbatches every loss that is a mean over rows adds up by itself. The contrastive loss does
not: it compares rows with each other, and its projector normalises over all of them. So it is taken
apart (GradCache, arXiv 2101.06983): the embeddings of all microbatches first, without gradient;
then the contrastive loss of the whole batch, and how it pulls at each embedding; then each
microbatch once more, with its own losses and that pull. The numbers are those of the whole batch,
for one more forward pass of the encoder.

The plain form, `accumulation.negatives='microbatch'`, saves that pass. A row's negatives are then
those of its microbatch only, and so are BatchNorm's statistics: another loss, not the paper's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.augment.photometric import Photometric
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.mesh import pin_rows
from can_jax.models import can
from can_jax.objectives.base import at_least_float32
from can_jax.train.losses import (
    Inputs,
    Metrics,
    embedding_metrics,
    forward,
    losses,
    prepare,
)

Tree = Any
Embeddings = Float[Array, "rows width"]


class Found(NamedTuple):
    """What a batch tells the optimizer, and what there is to log."""

    total: Float[Array, ""]
    metrics: Metrics
    batch_stats: Tree
    gradients: Tree


def gradients(
    config: ConfigDict,
    network: nnx.GraphDef,
    parameters: Tree,
    batch_stats: Tree,
    batch: Batch,
    step: Int[Array, ""],
) -> Found:
    """Loss and gradient of a batch, as ``config.accumulation`` says.

    Args:
        config: resolved.
        network: its structure.
        parameters, batch_stats: of the network.
        batch: as the loader gives it.
        step: the number that the randomness of the step follows from.
    """
    run = _Run(config, network, parameters, batch_stats, step)
    if config.accumulation.microbatches == 1:
        found, pooled = run.one_pass(batch, batch_stats)
    elif config.accumulation.negatives == "batch" and run.settings(related=True):
        found, pooled = run.with_all_negatives(batch)
    else:
        found, pooled = run.one_by_one(batch)
    return found._replace(metrics=found.metrics | embedding_metrics(pooled))


def parted(images: Shaped[Array, "all ..."], count: int) -> Shaped[Array, "count part ..."]:
    """The images of ``count`` microbatches on a leading axis. Every device has some of each, so
    none moves."""
    return pin_rows(images.reshape(-1, count, *images.shape[1:])).swapaxes(0, 1)


def joined(parts: Shaped[Array, "count part ..."]) -> Shaped[Array, "all ..."]:
    """The inverse of `parted`."""
    return pin_rows(pin_rows(parts.swapaxes(0, 1)).reshape(-1, *parts.shape[2:]))


class _Run(NamedTuple):
    """One step's network and state. Its methods give what was found, and the pooled embeddings."""

    config: ConfigDict
    network: nnx.GraphDef
    parameters: Tree
    batch_stats: Tree
    step: Int[Array, ""]

    def settings(self, *, related: bool) -> objectives.Settings:
        """Of the objectives with a weight that relate rows to each other, or of the others."""
        settings = self.config.objective.to_dict()
        terms = objectives.active(settings)
        return {name: settings[name] for name in terms if terms[name].relates_rows == related}

    def model(self, parameters: Tree, batch_stats: Tree) -> can.CAN:
        """The network."""
        return nnx.merge(self.network, parameters, batch_stats, copy=True)

    def inputs(self, batch: Batch) -> Inputs:
        """Of the network, with the randomness of this step."""
        settings = Photometric.from_settings(self.config.augment.to_dict())
        return prepare(self.config, batch, self.step, settings)

    def one_pass(self, batch: Batch, batch_stats: Tree) -> tuple[Found, Embeddings]:
        """All of a batch together."""
        inputs = self.inputs(batch)

        def loss(parameters: Tree) -> tuple[Array, tuple[Metrics, Tree, Array]]:
            model = self.model(parameters, batch_stats)
            outputs = forward(self.config, model, inputs, train=True)
            total, metrics = losses(self.config, outputs, inputs)
            return total, (metrics, statistics_of(model), outputs.pooled)

        gradient = jax.value_and_grad(loss, has_aux=True)
        (total, (metrics, statistics, pooled)), found = gradient(self.parameters)
        return Found(total, metrics, statistics, found), pooled

    def one_by_one(self, batch: Batch) -> tuple[Found, Embeddings]:
        """The mean over microbatches that know nothing of each other."""
        count = self.config.accumulation.microbatches

        def add(carry: tuple[Tree, Tree], part: Batch) -> tuple[tuple[Tree, Tree], Any]:
            total, batch_stats = carry
            found, pooled = self.one_pass(part, batch_stats)
            total = jax.tree.map(lambda a, b: a + b / count, total, found.gradients)
            return (total, found.batch_stats), ((found.total, found.metrics), pooled)

        start = (jax.tree.map(jnp.zeros_like, self.parameters), self.batch_stats)
        parts = Batch(*(parted(x, count) for x in batch))
        (total, batch_stats), (logged, pooled) = jax.lax.scan(add, start, parts)
        loss, metrics = jax.tree.map(lambda x: x.mean(axis=0), logged)
        return Found(loss, metrics, batch_stats, total), pooled.reshape(-1, pooled.shape[-1])

    def with_all_negatives(self, batch: Batch) -> tuple[Found, Embeddings]:
        """Return the gradient of the whole batch, in microbatches; see the head of this file."""
        count, views = self.config.accumulation.microbatches, batch.views.shape[1]
        parts = Batch(*(parted(x, count) for x in batch))
        settings = self.settings(related=True)
        reads = objectives.reads(settings)

        def embedded(outputs: can.Forward) -> Array:
            return outputs.latent if "tokens" in reads else outputs.pooled

        def pooled_of(embeddings: Array) -> Embeddings:
            rows = embeddings.reshape(-1, *embeddings.shape[2:])
            pool = self.config.objective.contrastive.pool
            return can.pool(rows, pool) if "tokens" in reads else rows

        def embed(_: None, part: Batch) -> tuple[None, Array]:
            model = self.model(self.parameters, self.batch_stats)
            rows = embedded(forward(self.config, model, self.inputs(part), train=True, heads=set()))
            return None, rows.reshape(-1, views, *rows.shape[1:])

        def related(parameters: Tree, embeddings: Array) -> tuple[Array, tuple[Metrics, Tree]]:
            model = self.model(parameters, self.batch_stats)
            pooled = pooled_of(embeddings)
            fields = {"tokens": embeddings, "labels": batch.label}
            fields["pooled"] = pooled.reshape(*embeddings.shape[:2], -1)
            if "projection" in reads:
                projection = model.project(pooled, train=True)
                fields["projection"] = projection.reshape(*embeddings.shape[:2], -1)
            arrays = objectives.Arrays(**{name: fields[name] for name in reads})
            total, metrics = objectives.total_loss(arrays, settings)
            return total, (metrics, statistics_of(model))

        def separable(parameters: Tree, part: Batch, pull: Array) -> tuple[Array, Any]:
            inputs, model = self.inputs(part), self.model(parameters, self.batch_stats)
            heads = can.HEADS - {"projection"}
            outputs = forward(self.config, model, inputs, train=True, heads=heads)
            total, metrics = losses(self.config, outputs, inputs, self.settings(related=False))
            rows = at_least_float32(embedded(outputs))
            pulled = jnp.vdot(rows, pull.reshape(rows.shape))
            return total / count + pulled, (total, metrics)

        def add(total: Tree, part: tuple[Batch, Array]) -> tuple[Tree, Any]:
            found, logged = jax.grad(separable, has_aux=True)(self.parameters, *part)
            return jax.tree.map(jnp.add, total, found), logged

        embeddings = joined(jax.lax.scan(embed, None, parts)[1])
        gradient = jax.value_and_grad(related, argnums=(0, 1), has_aux=True)
        (loss, (metrics, statistics)), (total, pull) = gradient(self.parameters, embeddings)
        total, logged = jax.lax.scan(add, total, (parts, parted(pull, count)))
        others, other_metrics = jax.tree.map(lambda x: x.mean(axis=0), logged)
        metrics |= other_metrics | {"loss/total": loss + others}
        pooled = pooled_of(embeddings)
        return Found(loss + others, metrics, statistics, total), pooled


def statistics_of(model: can.CAN) -> Tree:
    """BatchNorm's running statistics."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
