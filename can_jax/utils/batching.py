"""A batching rule that JAX lacks, so that steps and gradients can be vectorized by `jax.vmap`."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import linear_call
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import batching


@functools.cache
def batch_linear_calls() -> None:
    """Let `jax.vmap` batch `jax.custom_derivatives.linear_call`; an existing rule is kept.

    The rule is missing in JAX 0.10 to 0.12. The operations of `can_jax.models.ops` use such calls.
    """

    def call(x: Any) -> Any:
        return linear_call(lambda _, y: y, lambda _, y: y, (), x)

    try:
        jax.eval_shape(jax.vmap(call), jnp.ones(1))
    except NotImplementedError:
        primitive = jax.make_jaxpr(call)(1.0).eqns[0].primitive
        batching.primitive_batchers[primitive] = _batched


def _batched(
    arguments: Sequence[Any],
    axes: Sequence[int | None],
    *,
    callee: Any,
    transpose_thunk: Any,
    num_callee_consts: int,
    num_res: int,
) -> tuple[list[Any], list[int]]:
    """Return the results of a batched call, which can be transposed as the call itself."""
    batched = zip(arguments, axes, strict=True)
    size = next(x.shape[axis] for x, axis in batched if axis is not None)

    def first(x: Any, axis: int | None) -> Any:
        if axis is None:
            return jnp.broadcast_to(x, (size, *jnp.shape(x)))
        return jnp.moveaxis(x, axis, 0)

    full = [first(x, axis) for x, axis in zip(arguments, axes, strict=True)]
    constants, residuals = full[:num_callee_consts], full[num_callee_consts:][:num_res]

    def forward(residual: Any, linear: Any) -> Any:
        return list(jax.vmap(jaxpr_as_fun(callee))(*residual[0], *residual[1], *linear))

    def backward(residual: Any, gradients: Any) -> Any:
        transpose, own = transpose_thunk()
        run = jaxpr_as_fun(transpose)
        return list(jax.vmap(lambda *rest: run(*own, *rest))(*residual[1], *gradients))

    linear = full[num_callee_consts + num_res :]
    results = linear_call(forward, backward, (constants, residuals), linear)
    return results, [0] * len(results)
