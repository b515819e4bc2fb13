"""The training loop, without training."""

import types

import pytest
from etils import epath

from can_jax.checkpoint.lock import RunLock
from can_jax.data.pipeline.batch import Batch
from can_jax.train.loop import Loop
from can_jax.train.step import TrainState
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config


def test_reason_of_the_end_is_given_if_the_dump_cannot_be_written(tmp_path):
    (tmp_path / "captures").write_text("")  # in place of the folder
    loop = object.__new__(Loop)
    loop.step = types.SimpleNamespace(config=small_config(skipped_updates_limit=4))
    loop.workdir, loop.lock = epath.Path(tmp_path), RunLock(None)
    message = (
        "4 updates in a row were not finite, up to step 7; a lower optimizer.learning_rate may "
        "help. The latest step, 9, could not be written"
    )
    with pytest.raises(UserError, match=message):
        loop._stop_broken(9, TrainState(*[None] * 5), Batch(None, None, None))
