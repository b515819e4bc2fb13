"""A guard of the step's speed on GPUs: its kernels and its memory traffic, as compiled.

`python -m tests.plan.test_step_traffic` prints the entry of this machine's compiler for
`traffic.json`. `make test-gpu` installs that compiler, which needs no GPU.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("traffic.json")
PLUGIN, TOPOLOGIES = "jax-cuda13-plugin", ("h100:1x1", "h100:8x1")
ALLOWED = 1.1
SMALLEST = 5e7  # bytes; smaller parts may vary
LINES = 5  # instructions that a failure lists


def shallow_vit_l(topology):
    """Return the kernels and bytes of ViT-L's step with 64 images a GPU and four blocks."""
    from can_jax.config.resolve import load_recipe, resolve
    from can_jax.plan.estimate import make_plan
    from can_jax.plan.topology import open_topology
    from can_jax.utils.progress import apart

    devices = open_topology(topology)
    assert devices.exact, devices.stand_in
    config = load_recipe(__file__, "vit_l")
    config.batch_size, config.data.path = 64 * len(devices.devices), "/data"
    config.model.depth, config.model.decoder.depth = 2, 2
    with apart(json=True):  # The entry is printed.
        estimate = make_plan(resolve(config), devices, 0.4).estimate
    parts, lines = Counter(), Counter()
    for charge in estimate.charges:
        parts[charge.part] += charge.moved * charge.times
        lines[f"{charge.part}: {charge.line or charge.name}"] += charge.moved * charge.times
    return {
        "kernels": estimate.kernels,
        "outside products": estimate.traffic_outside_products,
        "parts": dict(parts.most_common()),
        "lines": {line: moved for line, moved in lines.most_common() if moved > SMALLEST},
    }


def grown(found, recorded):
    """Return what has grown by more than a tenth, and the lines of source that grew most."""
    values = {n: (found[n], recorded[n]) for n in ("kernels", "outside products")}
    values |= {n: (moved, recorded["parts"].get(n, 0)) for n, moved in found["parts"].items()}
    more = [
        f"{name}: {before:,} to {after:,}"
        for name, (after, before) in values.items()
        if after > ALLOWED * before and (name == "kernels" or after > SMALLEST)
    ]
    if more:
        change = Counter(found["lines"])
        change.subtract(recorded["lines"])
        more += [f"  {line}: {moved:+,} bytes" for line, moved in change.most_common(LINES)]
    return more


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_step_of_a_gpu_moves_no_more_than_recorded(topology):
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    try:
        version = metadata.version(PLUGIN)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PLUGIN} is not installed; make test-gpu installs it")
    if topology not in recorded.get(version, {}):
        pytest.skip(f"{RECORD.name} has no entry of {PLUGIN} {version} for {topology}")
    # The tests' own settings of the compiler do not apply in a process of its own.
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-m", "tests.plan.test_step_traffic", topology]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[version][topology]
    more = grown(found, recorded[version][topology])
    assert not more, "\n".join(more)


def test_tested_version_is_recorded():
    """Otherwise the guard would be skipped after an update of the constraints."""
    text = (Path(__file__).parents[2] / "constraints" / "py312-cuda.txt").read_text()
    (pin,) = re.findall(rf"^{PLUGIN}==(.*)$", text, re.MULTILINE)
    assert set(TOPOLOGIES) <= set(json.loads(RECORD.read_text())[pin])


def test_growth_is_reported_with_its_line():
    gb = 10**9
    recorded = {
        "kernels": 100, "outside products": 10 * gb, "parts": {"optimizer": 4 * gb, "copies": 1},
        "lines": {"optimizer: step.py": 4 * gb},
    }  # fmt: skip
    same = recorded | {"kernels": 109, "parts": {"optimizer": 4.3 * gb, "copies": 1000}}
    assert grown(same, recorded) == []
    lines = {"optimizer: step.py": 4 * gb, "optimizer: ops.py": 2 * gb}
    more = recorded | {"parts": {"optimizer": 6 * gb}, "lines": lines}
    assert grown(more, recorded) == [
        "optimizer: 4,000,000,000 to 6,000,000,000",
        "  optimizer: ops.py: +2,000,000,000 bytes",
        "  optimizer: step.py: +0 bytes",
    ]
    assert grown(recorded | {"kernels": 111}, recorded)[0] == "kernels: 100 to 111"


if __name__ == "__main__":
    topologies = sys.argv[1:] or TOPOLOGIES
    entries = {topology: shallow_vit_l(topology) for topology in topologies[:1]}
    for topology in topologies[1:]:  # JAX selects its devices once per process.
        command = [sys.executable, "-m", "tests.plan.test_step_traffic", topology]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        entries |= json.loads(printed)[metadata.version(PLUGIN)]
    json.dump({metadata.version(PLUGIN): entries}, sys.stdout, indent=1)
