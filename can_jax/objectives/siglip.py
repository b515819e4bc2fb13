"""The pairwise sigmoid loss of SigLIP on views of images (arXiv 2303.15343)."""

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
    """The projector, and the learned temperature and bias of the logits.

    Args:
        config: The configuration.
        width: The width of the encoder.
        **options: The types and the random numbers of each layer.
    """

    def __init__(self, config: Any, width: int, **options: Any):
        settings, dtype = config.objective.siglip, options["param_dtype"]
        self.projector = projector(config, width, **options)
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(settings.initial_scale, dtype)))
        self.bias = nnx.Param(jnp.asarray(settings.initial_bias, dtype))

    def __call__(self, rows: Float[Array, "rows width"], *, train: bool) -> Array:
        """Project rows."""
        return self.projector(rows, train=train)


def loss(arrays: Arrays, head: Any, block: int | None) -> tuple[Loss, Metrics]:
    """Compute ``-log sigmoid(y (t s + b))``, summed over all other rows, averaged over rows.

    ``s`` is the cosine similarity, ``y`` is 1 for two views of one image and -1 otherwise. The
    scale ``t`` and the bias ``b`` are learned. The paper pairs an image with texts; here a row is
    paired with the rows of all views.

    Args:
        arrays: The outputs of the network and the targets of a step.
        head: A projector with ``log_scale`` and ``bias``.
        block: The number of keys compared at a time; `block_size` computes the default.
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
            10.0, Number(1e-3, 1e3), "The initial factor of similarities, which is learned."
        ),
        "initial_bias": Key(-10.0, Number(-1e3, 1e3), "The initial bias, which is learned."),
        "block": BLOCK,
    },
    head=Head,
    relates_rows=True,
    min_views=2,
    min_images=2,
)
