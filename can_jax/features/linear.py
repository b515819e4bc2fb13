"""Linear classifiers on frozen features, one for each setting of a hyperparameter grid. All
classifiers are trained in one loop."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

MOMENTUM = 0.9


class Setting(NamedTuple):
    """The learning rate and weight decay with which one linear classifier is trained."""

    learning_rate: float
    weight_decay: float


class Heads(NamedTuple):
    """Several linear classifiers ("heads") on standardized features.

    Attributes:
        kernel, bias: The weights (heads, width, classes) and the biases (heads, classes).
        mean, deviation: The mean and standard deviation by which features are standardized.
    """

    kernel: Float[np.ndarray, "heads width classes"]
    bias: Float[np.ndarray, "heads classes"]
    mean: Float[np.ndarray, " width"]
    deviation: Float[np.ndarray, " width"]

    def logits(
        self, features: Float[np.ndarray, "examples width"], chunk: int = 4096
    ) -> Float[np.ndarray, "heads examples classes"]:
        """Return the logits of every head, of shape (heads, examples, classes).

        Args:
            features: The feature vectors of the examples, not standardized.
            chunk: The number of examples to process at a time.
        """
        standard = (features - self.mean) / self.deviation
        parts = [
            np.asarray(_logits(self.kernel, self.bias, standard[i : i + chunk]))
            for i in range(0, len(standard), chunk)
        ]
        return np.concatenate(parts, axis=1)

    def predictions(
        self, features: Float[np.ndarray, "examples width"], numbers: int = 2**28
    ) -> Int[np.ndarray, "heads examples"]:
        """Return the class index that each head predicts for each example.

        Args:
            features: The feature vectors of the examples, not standardized.
            numbers: The maximum number of logits to compute at a time, over all heads. A
                single example is processed even if it has more logits.
        """
        chunk = max(1, numbers // self.bias.size)
        parts = [
            self.logits(features[i : i + chunk], chunk).argmax(axis=2)
            for i in range(0, len(features), chunk)
        ]
        return np.concatenate(parts, axis=1)


@jax.jit
def _logits(kernel: Array, bias: Array, standard: Array) -> Array:
    """Return the logits of every head for standardized features."""
    products = jnp.einsum("ew,hwc->hec", standard, kernel, precision="highest")
    return products + bias[:, None]


def grid(learning_rates: tuple[float, ...], weight_decays: tuple[float, ...]) -> list[Setting]:
    """Return a `Setting` for every combination of a learning rate and a weight decay."""
    return list(itertools.starmap(Setting, itertools.product(learning_rates, weight_decays)))


def _optimizer(rate: Any, decay: Any) -> optax.GradientTransformation:
    """Return an SGD optimizer with momentum, and with weight decay of the kernel only."""
    only_kernel = optax.add_decayed_weights(decay, mask={"kernel": True, "bias": False})
    return optax.chain(only_kernel, optax.sgd(rate, MOMENTUM))


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _epoch(
    heads: dict[str, Array],
    state: optax.OptState,
    features: Float[Array, "examples width"],
    labels: Int[Array, " examples"],
    batches: Int[Array, "steps batch"],
    rates: Float[Array, "steps heads"],
    decays: Float[Array, " heads"],
) -> tuple[dict[str, Array], optax.OptState]:
    """Train every head for one epoch, and return the new heads and optimizer states.

    The host computes the learning rates in double precision; `optax.cosine_decay_schedule` would
    round to float32 at each operation.
    """

    def loss(head: dict[str, Array], x: Array, y: Array) -> Array:
        logits = jnp.matmul(x, head["kernel"], precision="highest") + head["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def update(
        head: dict[str, Array], state: Any, x: Array, y: Array, rate: Array, decay: Array
    ) -> tuple[dict[str, Array], Any]:
        gradient = jax.grad(loss)(head, x, y)
        updates, state = _optimizer(rate, decay).update(gradient, state, head)
        return optax.apply_updates(head, updates), state

    update_all: Callable[..., Any] = jax.vmap(update, in_axes=(0, 0, None, None, 0, 0))

    def step(carry: tuple, batch_and_rates: tuple[Array, Array]) -> tuple[tuple, None]:
        batch, rate = batch_and_rates
        return update_all(*carry, features[batch], labels[batch], rate, decays), None

    return jax.lax.scan(step, (heads, state), (batches, rates))[0]


def train_heads(
    features: Float[np.ndarray, "examples width"],
    labels: Int[np.ndarray, " examples"],
    classes: int,
    settings: list[Setting],
    epochs: int,
    batch_size: int,
    seed: int = 0,
) -> Heads:
    """Train a linear classifier for each setting, by SGD with momentum and a cosine schedule.

    The loss is the cross-entropy plus ``weight_decay / 2`` times the sum of squared kernel entries.
    All parameters start at zero. All classifiers are trained on the same batches. The result of a
    setting does not depend on the other settings.

    Args:
        features: The feature vectors of the training examples. The function standardizes the
            features to mean 0 and standard deviation 1.
        labels: The class index of each example, from 0 to ``classes`` - 1.
        classes: The number of classes, which is also the number of outputs of each classifier.
        settings: The learning rate and weight decay of each classifier.
        epochs: The number of passes over the training examples.
        batch_size: The number of examples in a batch, reduced to the number of examples if larger.
            An incomplete last batch of an epoch is dropped.
        seed: The seed of the random order of the examples.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    standard = jnp.asarray((features - mean) / deviation, jnp.float32)
    count, width, heads = len(labels), features.shape[1], len(settings)
    batch_size = min(batch_size, count)
    steps = count // batch_size
    rng = np.random.default_rng(seed)
    peak = np.array([s.learning_rate for s in settings], np.float32)
    decays = jnp.array([s.weight_decay for s in settings], jnp.float32)
    learned = {
        "kernel": jnp.zeros((heads, width, classes)),
        "bias": jnp.zeros((heads, classes)),
    }
    state = jax.vmap(_optimizer(0.0, 0.0).init)(learned)
    for epoch in range(epochs):
        order = rng.permutation(count)[: steps * batch_size].reshape(steps, batch_size)
        passed = (epoch * steps + np.arange(steps)) / (epochs * steps)
        rates = 0.5 * (1 + np.cos(np.pi * passed))[:, None] * peak
        learned, state = _epoch(
            learned, state, standard, jnp.asarray(labels), jnp.asarray(order),
            jnp.asarray(rates, jnp.float32), decays,
        )  # fmt: skip
    return Heads(np.asarray(learned["kernel"]), np.asarray(learned["bias"]), mean, deviation)
