"""Gradient accumulation over microbatches.

A row is one view of an image. Losses that are means over rows can be averaged over microbatches. A
contrastive loss cannot be averaged over microbatches, since it compares all rows of the batch.
BatchNorm in the contrastive projector also normalizes over all rows.

With `accumulation.negatives='batch'`, a contrastive loss is computed as in GradCache (arXiv
2101.06983). First, the embeddings of all microbatches are computed without gradients. Second, the
contrastive loss of the whole batch is computed, with its gradient with respect to the embeddings.
Third, each microbatch is run again, to backpropagate its noncontrastive losses and the gradient of
its embeddings. Up to rounding, GradCache gives the gradients of the whole batch. GradCache costs
one more forward pass of the encoder.

`accumulation.negatives='microbatch'` needs no extra forward pass, but compares each row only with
the rows of its microbatch. With microbatch negatives, BatchNorm, too, normalizes over only one
microbatch, so the loss differs from that of the CAN paper.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Shaped
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.augment.photometric import Photometric
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.models import can
from can_jax.objectives.base import Arrays, at_least_float32
from can_jax.train.losses import (
    Embeddings,
    Inputs,
    Metrics,
    StepOutput,
    Tree,
    forward,
    loss_and_gradients,
    losses,
    prepare,
    total_loss,
    with_teacher,
)
from can_jax.train.network import owned_heads, statistics_of


def accumulate_gradients(
    config: ConfigDict,
    network: nnx.GraphDef,
    parameters: Tree,
    batch_stats: Tree,
    batch: Batch,
    step: Int[Array, ""],
    teacher: Tree | None = None,
) -> tuple[StepOutput, Embeddings]:
    """Compute the losses and gradients of a batch, one microbatch at a time.

    ``config.accumulation`` sets the number of microbatches and the source of negatives. The
    arguments and results are those of `can_jax.train.losses.loss_and_gradients`.
    """
    run = _Run(config, network, parameters, batch_stats, step, teacher)
    if config.accumulation.negatives == "batch" and run.settings(related=True):
        return run.with_all_negatives(batch)
    return run.one_by_one(batch)


def split_microbatches(
    images: Shaped[Array, "all ..."], count: int
) -> Shaped[Array, "count part ..."]:
    """Split a batch into ``count`` microbatches along a new leading axis.

    Each device splits its own images over the microbatches, so no image moves between devices.
    """
    return constrain_batch_sharding(images.reshape(-1, count, *images.shape[1:])).swapaxes(0, 1)


def merge_microbatches(parts: Shaped[Array, "count part ..."]) -> Shaped[Array, "all ..."]:
    """Merge microbatches into one batch; the inverse of `split_microbatches`."""
    return constrain_batch_sharding(
        constrain_batch_sharding(parts.swapaxes(0, 1)).reshape(-1, *parts.shape[2:])
    )


def accumulators(gradients: Tree) -> Tree:
    """Cast gradients to at least float32, since sums in 16 bits lose digits."""
    return jax.tree.map(at_least_float32, gradients)


class _Run(NamedTuple):
    """The inputs of one train step, with two methods that accumulate its gradients."""

    config: ConfigDict
    network: nnx.GraphDef
    parameters: Tree
    batch_stats: Tree
    step: Int[Array, ""]
    teacher: Tree | None

    def settings(self, *, related: bool) -> objectives.Settings:
        """Return the config blocks of active objectives whose ``relates_rows`` is ``related``."""
        settings = self.config.objective.to_dict()
        terms = objectives.active(settings)
        return {name: settings[name] for name in terms if terms[name].relates_rows == related}

    def model(self, parameters: Tree, batch_stats: Tree) -> can.CAN:
        """Build the network from its parameters and batch statistics."""
        return nnx.merge(self.network, parameters, batch_stats, copy=True)

    def inputs(self, batch: Batch) -> Inputs:
        """Return the network inputs, with the augmentation, noise and masks of this step."""
        settings = Photometric.from_settings(self.config.augment.to_dict())
        return prepare(self.config, batch, self.step, settings)

    def targets(self, batch: Batch) -> Inputs:
        """Return the network inputs, with the teacher's tokens if an objective reads them."""
        return with_teacher(
            self.config, self.network, self.parameters, self.batch_stats,
            self.inputs(batch), self.teacher,
        )  # fmt: skip

    def one_by_one(self, batch: Batch) -> tuple[StepOutput, Embeddings]:
        """Average the gradients of microbatches that use only their own images as negatives."""
        count = self.config.accumulation.microbatches

        def add(carry: tuple[Tree, Tree], part: Batch) -> tuple[tuple[Tree, Tree], Any]:
            total, batch_stats = carry
            outputs, pooled = loss_and_gradients(
                self.config, self.network, self.parameters, batch_stats, part, self.step,
                self.teacher,
            )  # fmt: skip
            total = jax.tree.map(lambda a, b: a + b / count, total, outputs.gradients)
            return (total, outputs.batch_stats), ((outputs.total, outputs.metrics), pooled)

        zeros = jax.tree.map(jnp.zeros_like, accumulators(self.parameters))
        parts = jax.tree.map(lambda x: split_microbatches(x, count), batch)
        (total, batch_stats), (logged, pooled) = jax.lax.scan(add, (zeros, self.batch_stats), parts)
        loss, metrics = jax.tree.map(lambda x: x.mean(axis=0), logged)
        return StepOutput(loss, metrics, batch_stats, total), pooled.reshape(-1, pooled.shape[-1])

    def with_all_negatives(self, batch: Batch) -> tuple[StepOutput, Embeddings]:
        """Compute the gradients of the batch one microbatch at a time, with GradCache for
        objectives with ``relates_rows=True``."""
        count, views = self.config.accumulation.microbatches, batch.views.shape[1]
        parts = jax.tree.map(lambda x: split_microbatches(x, count), batch)
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
            rows = embedded(forward(self.config, model, self.inputs(part), decode=False))
            return None, rows.reshape(-1, views, *rows.shape[1:])

        def related(parameters: Tree, embeddings: Array) -> tuple[Array, tuple[Metrics, Tree]]:
            model = self.model(parameters, self.batch_stats)
            pooled = pooled_of(embeddings)
            fields = {"tokens": embeddings, "labels": batch.label, "contents": batch.content}
            fields["pooled"] = pooled.reshape(*embeddings.shape[:2], -1)
            arrays = Arrays(**{name: fields[name] for name in reads})
            heads = owned_heads(model, settings)
            total, metrics = total_loss(arrays, settings, heads)
            return total, (metrics, statistics_of(model))

        def separable(
            parameters: Tree, batch_stats: Tree, part: Batch, pull: Array
        ) -> tuple[Array, Any]:
            inputs, model = self.targets(part), self.model(parameters, batch_stats)
            outputs = forward(self.config, model, inputs)
            others = self.settings(related=False)
            total, metrics = losses(self.config, model, outputs, inputs, others)
            rows = at_least_float32(embedded(outputs))
            pulled = jnp.vdot(rows, pull.reshape(rows.shape))
            return total / count + pulled, (statistics_of(model), (total, metrics))

        def add(carry: tuple[Tree, Tree], part: tuple[Batch, Array]) -> tuple[Any, Any]:
            total, batch_stats = carry
            gradient = jax.grad(separable, has_aux=True)
            gradients, (batch_stats, logged) = gradient(self.parameters, batch_stats, *part)
            return (jax.tree.map(jnp.add, total, gradients), batch_stats), logged

        embeddings = merge_microbatches(jax.lax.scan(embed, None, parts)[1])
        gradient = jax.value_and_grad(related, argnums=(0, 1), has_aux=True)
        (loss, (metrics, statistics)), (total, pull) = gradient(self.parameters, embeddings)
        start = accumulators(total), statistics
        (total, statistics), logged = jax.lax.scan(
            add, start, (parts, split_microbatches(pull, count))
        )
        others, other_metrics = jax.tree.map(lambda x: x.mean(axis=0), logged)
        metrics |= other_metrics | {"loss/total": loss + others}
        pooled = pooled_of(embeddings)
        return StepOutput(loss + others, metrics, statistics, total), pooled
