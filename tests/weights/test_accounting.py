import ml_dtypes
import numpy as np
import pytest

from can_jax.utils.errors import UserError
from can_jax.weights.accounting import grid_of_positions, refuse_unused
from tests.weights.vits import vit


def positions(*grid, width=24, class_row=True):
    return vit(width=width, depth=0, grid=grid, class_row=class_row)["pos_embed"]


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (2, 6), (6, 2), (1, 7), (14, 14), (3, 5)])
@pytest.mark.parametrize("class_row", [True, False])
def test_grid_of_any_shape_is_found(grid, class_row):
    assert grid_of_positions(positions(*grid, class_row=class_row), 24) == grid


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_rounded_positions_are_the_same_ones(dtype):
    rounded = positions(14, 14, width=64).astype(dtype)
    for stored in (rounded.astype(np.float32), rounded.astype(np.float64)):
        assert grid_of_positions(stored, 64) == (14, 14)


def rows_swapped():
    return positions(4, 4)[:, [0, 2, 1, *range(3, 17)]]


def row_first():
    return np.roll(positions(2, 6), 12, axis=2)


def other_frequencies():
    """Frequencies of big_vision and MoCo v3: the last one is 1 / 10000 itself."""
    width, grid = 64, 4
    y, x = np.mgrid[:grid, :grid].reshape(2, -1, 1)
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4 - 1))
    table = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
    return np.concatenate([np.zeros((1, width)), np.concatenate(table, axis=1)])[None]


def interpolated():
    table = positions(4, 4)
    return np.concatenate([table[:, :1], np.repeat(table[:, 1:], 4, axis=1)], axis=1)


def class_token_has_one():
    table = positions(4, 4).copy()
    table[0, 0] = 0.1
    return table


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.random.default_rng(0).normal(0, 0.02, (1, 17, 24)),
        lambda: positions(4, 4) + np.float32(0.01),
        rows_swapped, row_first, other_frequencies, interpolated, class_token_has_one,
        lambda: 2 * positions(4, 4),
    ],
)  # fmt: skip
def test_other_positions_are_refused_and_their_distance_told(make):
    table = make()
    with pytest.raises(UserError, match=r"differs by up to .*: learned and other positions"):
        grid_of_positions(table, table.shape[2])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((1, 17, 24), np.float32), "holds zeros"),
        (np.zeros((17, 24), np.float32), r"shape \(17, 24\)"),
        (positions(4, 4), r"shape \(1, tokens, 28\) are required"),
        (positions(4, 4).astype(np.int32), "is int32"),
    ],
)
def test_array_that_is_no_table_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        grid_of_positions(table, 28 if "28" in message else 24)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight", "norm_pre.weight", "reg_token",
        "dist_token", "fc_norm.weight", "encoder.layer.1.lambda_1", "rope.periods",
        "blocks.0.attn.relative_position_bias_table", "blocks.1.mlp.w12.weight", "embeddings.x",
        "blocks.0.attn.rel_pos_h", "norm.weight_", "attn_pool.q", "Transformer/encoderblock/x",
    ],
)  # fmt: skip
def test_unknown_array_is_refused_by_its_name(name):
    with pytest.raises(UserError, match=f"^{name} has no counterpart in this encoder, so "):
        refuse_unused([name, "head.weight", "norm.weight"], ["norm.weight"])


def test_arrays_outside_of_the_encoder_may_be_there():
    names = [
        "pos_embed", "mask_token", "head.weight", "head.0.running_mean", "pooler.dense.bias",
        "vit.pooler.dense.bias", "classifier.weight", "decoder_blocks.0.norm1.bias", "decoder.x",
        "projection_head.0.weight", "noise_pe_mlp.2.bias", "head/kernel", "opt/0/count",
        "projector/layers/0/kernel", "batch_stats/projector/norms/0/mean",
    ]  # fmt: skip
    refuse_unused(names, [])
