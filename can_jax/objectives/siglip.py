"""The pairwise sigmoid loss of SigLIP (arXiv 2303.15343), applied to augmented views."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from can_jax.distributed.mesh import constrain_batch_sharding
from can_jax.objectives.base import Arrays, Loss, Metrics, Objective
from can_jax.objectives.rows import (
    BLOCK,
    Rows,
    blocks,
    key_blocks,
    keys_at_a_time,
    on_sphere,
    pairs,
    projected,
    projector,
    similarities,
)
from can_jax.utils.settings import Key, Number


class Head(nnx.Module):
    """The projection head, and the learned scale and bias of the logits.

    Args:
        config: The configuration.
        width: The embedding dimension of the encoder.
        **options: The arguments ``dtype``, ``param_dtype`` and ``rngs`` of `flax.nnx` layers.
    """

    def __init__(self, config: Any, width: int, **options: Any):
        settings, dtype = config.objective.siglip, options["param_dtype"]
        self.projector = projector(config, width, **options)
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(settings.initial_scale, dtype)))
        self.bias = nnx.Param(jnp.asarray(settings.initial_bias, dtype))

    def __call__(self, rows: Float[Array, "rows width"], *, train: bool) -> Array:
        """Apply the projection head to each pooled embedding."""
        return self.projector(rows, train=train)


def loss(arrays: Arrays, head: Any, block: int | None) -> tuple[Loss, Metrics]:
    """Compute ``-log sigmoid(y (t s + b))``, summed over the keys and averaged over the queries.

    Each embedding of the global batch is a query, and all other embeddings are its keys. ``s`` is
    the cosine similarity, and ``y`` is 1 for two views of one image and -1 otherwise. The scale
    ``t`` and the bias ``b`` are learned. SigLIP pairs images with texts, whereas this loss pairs
    augmented views of images.

    Args:
        arrays: The network outputs and targets of one training step.
        head: A `Head`: a projector with the learned scalars ``log_scale`` and ``bias``.
        block: The number of keys per block of the similarity matrix; None selects the default,
            `can_jax.objectives.rows.block_size`.
    """
    assert arrays.pooled is not None
    images, views, _ = arrays.pooled.shape
    count = images * views
    unit = on_sphere(projected(arrays, head))
    rows = Rows(jnp.arange(count), None)
    size = keys_at_a_time(block, count)
    scale, bias = jnp.exp(head.log_scale[...]), head.bias[...]

    @jax.checkpoint
    def compare(total: Array, these: tuple[Array, Rows]) -> tuple[Array, None]:
        pair = pairs(rows, these[1], views)
        logits = scale * similarities(unit, these[0]) + bias
        costs = -jax.nn.log_sigmoid(jnp.where(pair.positive, logits, -logits))
        return total + jnp.sum(costs, axis=1, where=~pair.itself), None

    start = constrain_batch_sharding(jnp.zeros_like(unit, shape=count))
    total, _ = jax.lax.scan(compare, start, (blocks(unit, size), key_blocks(rows, size)))
    return total.mean(), {"siglip/scale": scale, "siglip/bias": bias}


OBJECTIVE = Objective(
    reads=frozenset({"pooled"}),
    loss=loss,
    keys={
        "initial_scale": Key(
            10.0, Number(1e-3, 1e3), "The initial value of the learned scale of the logits."
        ),
        "initial_bias": Key(
            -10.0, Number(-1e3, 1e3), "The initial value of the learned bias of the logits."
        ),
        "block": BLOCK,
    },
    head=Head,
    relates_rows=True,
    min_views=2,
    min_images=2,
)
