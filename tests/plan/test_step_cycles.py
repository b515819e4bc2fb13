"""A guard of the step's speed on TPUs, by the compiler's clock.

`python -m tests.plan.test_step_cycles` prints the entry of this machine's libtpu for `cycles.json`.
"""

import json
import re
import sys
from importlib import metadata
from pathlib import Path

import jax
import pytest

from can_jax.config.resolve import load_recipe, resolve
from can_jax.plan.estimate import make_plan
from can_jax.plan.topology import open_topology
from can_jax.utils.progress import apart

RECORD = Path(__file__).with_name("cycles.json")
CONSTRAINTS = sorted((Path(__file__).parents[2] / "constraints").glob("*.txt"))
ALLOWED = 1.1
SMALLEST = 2e-4  # seconds; smaller parts may vary


def shallow_vit_l():
    """Return the estimate of ViT-L's step with 64 images and four blocks."""
    config = load_recipe(__file__, "vit_l")
    config.batch_size, config.data.path = 64, "/data"
    config.model.depth, config.model.decoder.depth = 2, 2
    with apart(json=True):  # The entry is printed.
        return make_plan(resolve(config), open_topology("v5e:2x2"), 0.4).estimate


@pytest.mark.slow
def test_no_part_of_the_step_takes_more_cycles_than_recorded():
    recorded = json.loads(RECORD.read_text())
    version = metadata.version("libtpu")
    if version not in recorded:
        pytest.skip(f"{RECORD.name} has no entry of libtpu {version}; it has {list(recorded)}")
    estimate = shallow_vit_l()
    for part, seconds in estimate.parts().items():
        before = recorded[version].get(part, 0.0)
        if seconds > max(SMALLEST, ALLOWED * before):
            dearest = [charge for charge in estimate.top(10**6) if charge.part == part][:5]
            lines = [f"{1e3 * c.total:.3f} ms {c.name} {c.line}" for c in dearest]
            pytest.fail(f"{part}: {before:.6f} to {seconds:.6f} s\n" + "\n".join(lines))


def test_tested_versions_are_recorded():
    """Otherwise the guard would be skipped after an update of the constraints."""
    pins = re.findall(r"^libtpu==(.*)$", "".join(map(Path.read_text, CONSTRAINTS)), re.MULTILINE)
    assert pins and set(pins) <= set(json.loads(RECORD.read_text()))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    parts = {part: round(seconds, 7) for part, seconds in shallow_vit_l().parts().items()}
    json.dump({metadata.version("libtpu"): parts}, sys.stdout, indent=2)
