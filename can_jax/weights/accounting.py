"""Checks that an encoder uses all arrays of a weight file, and that fixed position embeddings are
correct."""

import re
from collections.abc import Collection

import ml_dtypes
import numpy as np

from can_jax.models.encoder import sincos_2d
from can_jax.utils.errors import UserError

# A pattern of the names of arrays that an encoder may leave unused.
OUTSIDE = re.compile(
    r"pos_embed"  # `grid_of_positions` compares it with the sin-cos table.
    r"|(vit\.|dinov2\.|dinov2_with_registers\.)?(embeddings\.)?mask_token"
    r"|(vit\.)?pooler\..*|classifier\..*|(head|head_dist|pre_logits)[./].*"  # After the last norm.
    r"|decoder[._/].*|projection_head\..*|noise_pe_mlp\..*"
    r"|(projector|noise_level|batch_stats)/.*"  # Full exports of can_jax have these.
    r"|(opt|optimizer|opt_state)[./].*"
    r"|n_averaged"  # PyTorch's AveragedModel counts steps.
)


def refuse_unused(arrays: Collection[str], used: Collection[str]) -> None:
    """Raise `UserError` for an unused array, unless it is known to be outside of the encoder.

    Args:
        arrays: The names of all arrays of a file.
        used: The names of the arrays that the encoder uses.
    """
    unused = sorted(set(arrays) - set(used))
    if unknown := [name for name in unused if not OUTSIDE.fullmatch(name)]:
        more = len(unknown) - 1
        others = {0: "", 1: ", nor has 1 other array"}.get(more, f", nor have {more} other arrays")
        raise UserError(
            f"{unknown[0]} has no counterpart in this encoder{others}, so its features would be "
            "wrong"
        )


def _tolerance(positions: np.ndarray) -> float:
    """Return the tolerance for a comparison of positions with a sin-cos table.

    The tolerance is larger if a 16-bit float type can represent the positions exactly.
    """
    for dtype, bound in ((ml_dtypes.bfloat16, 2.5e-3), (np.float16, 3e-4)):
        if np.array_equal(positions.astype(dtype).astype(positions.dtype), positions):
            return bound
    return 1e-4


def grid_of_positions(positions: np.ndarray, width: int) -> tuple[int, int]:
    """Return the patch grid (height, width) whose fixed sin-cos positions an array holds.

    Args:
        positions: Positions of shape (1, tokens, width), with or without a first row for the class
            token.
        width: The embedding width of the encoder.

    Raises:
        UserError: The array has a wrong type or shape, or is not the sin-cos table of any grid.
    """
    if positions.dtype.kind != "f" or positions.ndim != 3 or positions.shape[::2] != (1, width):
        raise UserError(
            f"pos_embed is {positions.dtype} of shape {positions.shape}; floating-point numbers of "
            f"shape (1, tokens, {width}) are required"
        )
    if width % 4:
        raise UserError(
            f"the encoder has width {width}, but 2-D sin-cos positions need a multiple of 4"
        )
    if not positions.any():
        raise UserError("pos_embed holds zeros instead of the fixed sin-cos positions")
    grid, error = _nearest_table(positions, width)
    if grid is None:
        raise UserError(
            "pos_embed is not the fixed 2-D sin-cos table (it differs by up to "
            f"{error:.2g}): learned and other positions are not supported for these weights"
        )
    return grid


def fits_table(positions: np.ndarray, width: int) -> bool:
    """Return whether ``positions`` is the fixed sin-cos table of any grid; see
    `grid_of_positions`."""
    return width % 4 == 0 and _nearest_table(positions, width)[0] is not None


def _nearest_table(positions: np.ndarray, width: int) -> tuple[tuple[int, int] | None, float]:
    """Return the grid (height, width) of the sin-cos table that ``positions`` match, and the
    largest absolute difference from this table.

    If no grid matches, return None and the difference from the most similar table.
    """
    best = np.inf
    for first in (1, 0):
        patches = positions[0, first:].astype(np.float64)
        for height in _heights(len(patches)):
            # The search would evict the tables in use from the cache, so it bypasses the cache.
            table = sincos_2d.__wrapped__((height, len(patches) // height), width)
            error = float(np.abs(patches - table).max())
            if first:  # The class token has no position: its row must be zero.
                error = max(error, float(np.abs(positions[0, 0]).max()))
            if error <= _tolerance(positions):
                return (height, len(patches) // height), error
            best = min(best, error)
    return None, best


def _heights(patches: int) -> list[int]:
    """Return the heights of all grids of ``patches`` patches, beginning with the most square
    grid."""
    heights = [height for height in range(1, patches + 1) if patches % height == 0]
    return sorted(heights, key=lambda height: abs(np.log(height**2 / patches)))
