"""A map of some hundred features in the plane: exact t-SNE (van der Maaten and Hinton, 2008)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from can_jax.features.health import unit

ITERATIONS, EXAGGERATED = 500, 100  # steps, and those at first in which neighbours pull harder
EXAGGERATION = 12.0


def embedding_map(
    features: Float[np.ndarray, "examples width"], perplexity: float = 30.0
) -> Float[np.ndarray, "examples 2"]:
    """Places in the plane where neighbours on the sphere are neighbours. It begins with the two
    main directions, so it is the same each time.

    Args:
        features: of each example.
        perplexity: about how many neighbours each has; a third of the examples at most.
    """
    on_sphere = unit(features)
    centred = on_sphere - on_sphere.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    start = centred @ directions[:2].T
    start = 1e-2 * start / max(float(start[:, 0].std()), 1e-12)
    squared = 2 - 2 * on_sphere @ on_sphere.T
    wanted = min(perplexity, len(features) / 3)
    places = _descend(jnp.asarray(start, jnp.float32), _neighbourhood(jnp.asarray(squared), wanted))
    return np.asarray(places)


@jax.jit
def _neighbourhood(
    squared: Float[Array, "examples examples"], perplexity: Float[Array, ""]
) -> Float[Array, "examples examples"]:
    """The joint probabilities of neighbours: Gaussians whose widths give every example the same
    perplexity, found by bisection."""
    count = squared.shape[0]
    other = 1 - jnp.eye(count)

    def shares(sharpness: Array) -> Array:
        weights = other * jnp.exp(-sharpness[:, None] * (squared - squared.min(1, keepdims=True)))
        return weights / weights.sum(axis=1, keepdims=True)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = jnp.sqrt(low * high)
        p = shares(middle)
        entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=1)
        wide = entropy > jnp.log(perplexity)
        return jnp.where(wide, middle, low), jnp.where(wide, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (jnp.full(count, 1e-4), jnp.full(count, 1e6)))
    p = shares(jnp.sqrt(low * high))
    return jnp.maximum((p + p.T) / (2 * count), 1e-12)


@jax.jit
def _descend(
    start: Float[Array, "examples 2"], joint: Float[Array, "examples examples"]
) -> Float[Array, "examples 2"]:
    """Gradient descent with momentum and gains on the divergence of the two neighbourhoods."""
    count = start.shape[0]
    rate = max(count / EXAGGERATION, 50.0)

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        places, velocity, gains = carry
        lengths = jnp.sum(places**2, axis=1)
        # Differences of large numbers: with fewer bits, near places have no distance.
        products = jnp.matmul(places, places.T, precision="highest")
        squared = lengths[:, None] + lengths - 2 * products
        near = (1 - jnp.eye(count)) / (1 + jnp.maximum(squared, 0.0))
        pull = near * (jnp.where(i < EXAGGERATED, EXAGGERATION, 1.0) * joint - near / near.sum())
        pulled = jnp.matmul(pull, places, precision="highest")
        gradient = 4 * (pull.sum(axis=1, keepdims=True) * places - pulled)
        gains = jnp.where(gradient * velocity < 0, gains + 0.2, gains * 0.8).clip(0.01)
        momentum = jnp.where(i < EXAGGERATED, 0.5, 0.8)
        velocity = momentum * velocity - rate * gains * gradient
        places = places + velocity
        return places - places.mean(axis=0), velocity, gains

    zero = jnp.zeros_like(start)
    return jax.lax.fori_loop(0, ITERATIONS, step, (start, zero, jnp.ones_like(start)))[0]
