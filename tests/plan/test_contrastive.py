import subprocess
import sys

from tests.helpers.runs import ROOT

PROGRAM = """
from ml_collections import ConfigDict
from can_jax.objectives.rows import block_size
from can_jax.distributed.mesh import make_mesh
from can_jax.cli.commands.plan_contrastive import loss_bytes
from can_jax.plan.topology import open_topology

devices = open_topology("cpu:256").devices
mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}), devices)
for images in (65536, 131072):
    print(loss_bytes(mesh, images, 128, block_size(2 * images, 256)))
"""


def test_loss_of_65536_images_on_256_devices_stays_below_a_gibibyte():
    """Rows a device times all keys would be 256 MiB, and several of them; twice that many images
    do not take four times as much."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    once, twice = map(int, done.stdout.split())
    assert once < 2**30
    assert twice < 2.5 * once
