import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from can_jax.checkpoint.failed_step import read_batch, write_failed_step
from can_jax.checkpoint.run_directory import newest_state
from can_jax.data.pipeline.batch import Batch
from tests.helpers.configs import small_config


def test_second_failure_at_a_step_replaces_the_state_of_the_first(tmp_path):
    folder, config = epath.Path(tmp_path / "22"), small_config()
    rows = jnp.arange(2, dtype=jnp.uint32)
    for value in (1.0, 2.0):
        batch = Batch(jnp.full((2, 2, 4, 4, 3), value), rows, jnp.zeros(2, jnp.int32))
        write_failed_step(folder, config, 22, {"w": jnp.full(3, value)}, batch)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"w": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)}
    assert np.asarray(newest_state(folder, abstract, "state")[1]["w"]).tolist() == [2.0] * 3
    assert read_batch(folder).views.mean() == 2
