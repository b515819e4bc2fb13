"""Data sets that are smaller than a batch."""

import numpy as np

from can_jax.data.sources.base import ArraySource
from can_jax.data.sources.mixture import MixtureSource
from can_jax.train.pretrain import warn_of_repeats
from tests.helpers.configs import small_config


def told_of_repeats(caplog, source, **changes):
    caplog.clear()
    warn_of_repeats(small_config(**changes), source)
    return [record.getMessage() for record in caplog.records]


def test_batches_that_hold_an_image_twice_are_told_before_the_first_step(caplog):
    few = ArraySource(np.zeros((5, 16, 16, 3), np.uint8), np.zeros(5, np.int32))
    many = ArraySource(np.zeros((16, 16, 16, 3), np.uint8), np.zeros(16, np.int32))
    mixed = MixtureSource((few, many), (3.0, 1.0))
    (line,) = told_of_repeats(caplog, few)
    assert "the data has 5 images" in line and "batch_size of at most 5" in line
    (line,) = told_of_repeats(caplog, mixed)
    assert "part 0 of the mixture has 5 images" in line and "batch_size of at most 6" in line
    assert not told_of_repeats(caplog, many)
    assert "treats as negatives of each other" in line
    parts = {"accumulation__microbatches": 2, "accumulation__negatives": "microbatch"}
    for changes in (
        {"objective__contrastive__weight": 0.0}, {"objective__contrastive__supervised": True},
        {"objective__contrastive__exclude_copies": True}, parts,
    ):  # fmt: skip
        (line,) = told_of_repeats(caplog, few, **changes)
        assert "5 images, fewer than the 8 that each step draws" in line
        assert "negatives" not in line  # no copy is one
