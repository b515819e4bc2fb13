"""The short form of `python -m tests.torture.kill`, on images in files."""

import numpy as np
import pytest

from tests.data import samples
from tests.torture.kill import torture


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_run_that_is_killed_a_few_times_ends_the_same(recipe, tmp_path, processes):
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / f"data/{i % 3}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(samples.encode(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)))
    data = ["--config.data.source=folder", f"--config.data.path={tmp_path / 'data'}"]
    quiet = ["--config.probe.every_steps=0", "--config.figures.every_steps=0"]
    seen, _ = torture(
        recipe, tmp_path, kills=3, steps=60, extra=[*data, *quiet], processes=processes
    )
    assert sum(codes.total() for codes in seen.values()) == 3
