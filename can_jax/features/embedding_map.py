"""A 2-D map of a few hundred feature vectors by exact t-SNE (van der Maaten and Hinton, 2008)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from can_jax.features.unit_length import unit

ITERATIONS, EXAGGERATED = 500, 100  # steps in total; first steps, which exaggerate attraction
EXAGGERATION = 12.0


def embedding_map(
    features: Float[np.ndarray, "examples width"], perplexity: float = 30.0
) -> Float[np.ndarray, "examples 2"]:
    """Return a 2-D point for each feature vector, computed by t-SNE. The vectors are first scaled
    to length 1.

    The optimization starts from the first two principal components, and uses no random numbers.

    Args:
        features: The feature vector of each example.
        perplexity: The effective number of neighbors of each example. The perplexity is limited to
            a third of the number of examples.
    """
    if len(features) < 3:  # no neighborhoods to compare
        return np.stack([np.arange(len(features)), np.zeros(len(features))], axis=1)
    on_sphere = unit(features)
    centered = on_sphere - on_sphere.mean(axis=0)
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    start = centered @ directions[:2].T
    start = np.pad(start, ((0, 0), (0, 2 - start.shape[1])))  # if the features have one dimension
    start = 1e-2 * start / max(float(start[:, 0].std()), 1e-12)
    squared = 2 - 2 * on_sphere @ on_sphere.T
    limited = min(perplexity, len(features) / 3)
    points = _descend(jnp.asarray(start, jnp.float32), _neighborhood(jnp.asarray(squared), limited))
    return np.asarray(points)


@jax.jit
def _neighborhood(
    squared: Float[Array, "examples examples"], perplexity: Float[Array, ""]
) -> Float[Array, "examples examples"]:
    """Return the joint neighbor probabilities of t-SNE, given the squared distances.

    The probabilities come from Gaussian kernels. For each example, bisection finds the kernel width
    that gives the requested perplexity.
    """
    count = squared.shape[0]
    other = 1 - jnp.eye(count)

    def conditional(sharpness: Array) -> Array:
        weights = other * jnp.exp(-sharpness[:, None] * (squared - squared.min(1, keepdims=True)))
        return weights / weights.sum(axis=1, keepdims=True)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = jnp.sqrt(low * high)
        p = conditional(middle)
        entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=1)
        wide = entropy > jnp.log(perplexity)
        return jnp.where(wide, middle, low), jnp.where(wide, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (jnp.full(count, 1e-4), jnp.full(count, 1e6)))
    p = conditional(jnp.sqrt(low * high))
    return jnp.maximum((p + p.T) / (2 * count), 1e-12)


@jax.jit
def _descend(
    start: Float[Array, "examples 2"], joint: Float[Array, "examples examples"]
) -> Float[Array, "examples 2"]:
    """Minimize the KL divergence of t-SNE by gradient descent with momentum and adaptive step
    sizes."""
    count = start.shape[0]
    rate = max(count / EXAGGERATION, 50.0)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        points, velocity, gains = carry
        lengths = jnp.sum(points**2, axis=1)
        # Distances are differences of large numbers: low precision rounds small distances to 0.
        products = jnp.matmul(points, points.T, precision="highest")
        squared = lengths[:, None] + lengths - 2 * products
        near = (1 - jnp.eye(count)) / (1 + jnp.maximum(squared, 0.0))
        pull = near * (jnp.where(i < EXAGGERATED, EXAGGERATION, 1.0) * joint - near / near.sum())
        pulled = jnp.matmul(pull, points, precision="highest")
        gradient = 4 * (pull.sum(axis=1, keepdims=True) * points - pulled)
        gains = jnp.where(gradient * velocity < 0, gains + 0.2, gains * 0.8).clip(0.01)
        momentum = jnp.where(i < EXAGGERATED, 0.5, 0.8)
        velocity = momentum * velocity - rate * gains * gradient
        points = points + velocity
        return points - points.mean(axis=0), velocity, gains

    zero = jnp.zeros_like(start)
    return jax.lax.fori_loop(0, ITERATIONS, step, (start, zero, jnp.ones_like(start)))[0]
