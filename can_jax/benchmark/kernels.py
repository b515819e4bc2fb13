"""A benchmark of the network's custom operations against those of JAX and Flax."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from can_jax.models import ops
from can_jax.models.vit import LAYER_NORM_EPS, layer_norm
from can_jax.utils.errors import one_line

WARM_UPS = 3


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of the token array to which an operation is applied.

    Attributes:
        rows: The number of sequences in the batch: images times views.
        tokens: The number of tokens per sequence, including the class token.
        heads: The number of attention heads, a divisor of ``width``.
        width: The number of features per token (the width of the residual stream).
    """

    rows: int
    tokens: int
    heads: int
    width: int


# Two views of 64 images at 224 px in ViT-L/16: half of the patches, then all, each with a class
# token.
SHAPES = {"encoder": Shape(128, 99, 16, 1024), "decoder": Shape(128, 197, 16, 512)}
SMALL = {"encoder": Shape(2, 5, 2, 16)}
Operation = Callable[..., jax.Array]
Inputs = tuple[jax.Array, ...]


def attention_operations() -> dict[str, Operation]:
    """Return implementations of attention by name, for inputs of shape (rows, tokens, heads, head
    width)."""
    library = jax.nn.dot_product_attention
    return {
        "ours": functools.partial(ops.attend_on_gpu, kernel="auto"),
        "ours, xla": ops.attend,
        "jax.nn, xla": functools.partial(library, implementation="xla"),
        "jax.nn, cudnn": functools.partial(library, implementation="cudnn"),
    }


def gelu_operations() -> dict[str, Operation]:
    """Return implementations of the exact GELU, by name."""
    return {"ours": ops.gelu, "jax.nn": functools.partial(jax.nn.gelu, approximate=False)}


def norm_operations(width: int, dtype: Any = jnp.bfloat16) -> dict[str, Operation]:
    """Return implementations of LayerNorm with outputs of ``dtype``, by name."""
    options = {"dtype": dtype, "rngs": nnx.Rngs(0)}
    library = nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, **options)
    return {"ours": layer_norm(width, **options), "nnx.LayerNorm": library}


def product_operations() -> dict[str, Operation]:
    """Return implementations of the matrix product of a linear layer, by name."""
    return {"ours": ops.linear_product, "jnp.matmul": jnp.matmul}


def operations(shape: Shape) -> Iterator[tuple[str, dict[str, Operation], Operation, Inputs]]:
    """Yield each operation with its implementations and random bfloat16 inputs.

    Args:
        shape: The shape of the token array, from which the shapes of the inputs follow.

    Yields:
        The name of the operation, its implementations by name, a reference implementation for
            float32 inputs, and the bfloat16 inputs.
    """
    rng = np.random.default_rng(0)

    def draw(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(sizes, np.float32), jnp.bfloat16)

    tokens, width = shape.rows * shape.tokens, shape.width
    of_heads = (shape.rows, shape.tokens, shape.heads, width // shape.heads)
    kinds = attention_operations()
    yield "attention", kinds, ops.attend, tuple(draw(*of_heads) for _ in range(3))
    kinds = gelu_operations()
    yield "GELU", kinds, kinds["ours"], (draw(tokens, 4 * width),)
    kinds, wide = norm_operations(width), norm_operations(width, jnp.float32)
    yield "LayerNorm", kinds, wide["ours"], (draw(tokens, width),)
    kinds = product_operations()
    yield "matrix product", kinds, jnp.matmul, (draw(tokens, width), draw(width, 4 * width))


def measure_kernels(
    shapes: dict[str, Shape], rounds: int, repeats: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Time the forward and backward pass of each implementation of each operation.

    Args:
        shapes: The token shapes to measure, by label, such as ``encoder``.
        rounds: The number of measurements of each implementation.
        repeats: The number of executions per measurement.

    Yields:
        A text that names the operation and the shape, such as ``attention, encoder``; and a dict of
            results for each implementation. ``milliseconds`` is the median time of an
            execution. ``error`` is the largest deviation of the output or a gradient from a float32
            reference, relative to the largest absolute value of that reference. If the device does
            not support an implementation, its dict holds only ``unsupported``, the error message.
    """
    for label, shape in shapes.items():
        for name, implementations, reference, inputs in operations(shape):
            results: dict[str, dict[str, Any]] = {}
            turns: dict[str, Callable[[], float]] = {}
            exact = _exact(reference, inputs)
            for kind, operation in implementations.items():
                try:
                    turns[kind], error = _prepare(operation, inputs, repeats, exact)
                    results[kind] = {"error": error}
                except Exception as reason:  # JAX raises many types, for example without cuDNN.
                    results[kind] = {"unsupported": one_line(reason)[:200]}
            times: dict[str, list[float]] = {kind: [] for kind in turns}
            for _ in range(rounds):
                for kind, turn in turns.items():
                    times[kind].append(turn())
            for kind, seconds in times.items():
                results[kind]["milliseconds"] = 1000 * statistics.median(seconds)
            yield f"{name}, {label}", results


def _gradient(operation: Operation) -> Callable[..., tuple[jax.Array, Inputs]]:
    """Return a function that computes the output and the vector-Jacobian product of an operation.

    The elements of the vector differ, because a vector of equal elements would give LayerNorm a
    zero gradient.
    """

    def both(*inputs: jax.Array) -> tuple[jax.Array, Inputs]:
        output, pull = jax.vjp(operation, *inputs)
        vector = jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
        return output, pull(vector.astype(output.dtype))

    return both


def _exact(operation: Operation, inputs: Inputs) -> list[np.ndarray]:
    """Return the output and the gradients of an operation in float32 at full matmul precision."""
    wide = tuple(value.astype(jnp.float32) for value in inputs)
    with jax.default_matmul_precision("highest"):
        return [np.asarray(x, np.float32) for x in jax.tree.leaves(_gradient(operation)(*wide))]


def _prepare(
    operation: Operation, inputs: Inputs, repeats: int, exact: list[np.ndarray]
) -> tuple[Callable[[], float], float]:
    """Compile an operation, and compute its relative error.

    Args:
        operation: The implementation to measure.
        inputs: The arrays to which the operation is applied.
        repeats: The number of executions per measurement.
        exact: The output and the gradients in float32, with which the results are compared.

    Returns:
        A pair: a function that measures and returns the seconds per execution, and the largest
            relative error.
    """
    both = jax.jit(_gradient(operation))
    computed = [np.asarray(x, np.float32) for x in jax.tree.leaves(both(*inputs))]
    for _ in range(WARM_UPS):
        jax.block_until_ready(both(*inputs))
    errors = (np.abs(a - b).max() / np.abs(b).max() for a, b in zip(computed, exact, strict=True))

    def turn() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            last = both(*inputs)
        jax.block_until_ready(last)
        return (time.perf_counter() - started) / repeats

    return turn, float(max(errors))
