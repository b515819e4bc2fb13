"""Work on a Ray cluster of two nodes on this machine, of which one is killed.

`make test-remote` installs Ray. Without it these tests are skipped.
"""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from can_jax.utils import workers
from can_jax.utils.errors import UserError
from can_jax.utils.workers import Workers
from tests.data.samples import encode, write_webdataset
from tests.evaluate import samples
from tests.helpers.runs import ROOT, main_in_process

pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

RNG = np.random.default_rng(0)
IMAGES = [encode(RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(12)]


@pytest.fixture
def cluster():
    """A cluster with a head that does no work and two nodes that do."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def square(number):
    if number == 3:
        raise UserError("three is refused")
    return number**2


def hundreds(number):
    time.sleep(0.2)
    return 100 * number


def same_files(first, second):
    names = sorted(path.name for path in first.iterdir() if path.is_file())
    assert names == sorted(path.name for path in second.iterdir() if path.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_index_is_the_same_though_a_node_is_killed(cluster, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for shard in range(60):
        images = [IMAGES[(shard + i) % len(IMAGES)] for i in range(4)]
        images[shard % 4] = b"no image" if shard % 5 == 0 else images[shard % 4]
        write_webdataset(data / f"shard-{shard:03d}.tar", images, range(4))
    parts = tmp_path / "far" / "parts"
    killed = []

    def kill():
        while len(list(parts.glob("*.npz"))) < 4:
            time.sleep(0.01)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)
        killed.append(len(list(parts.glob("*.npz"))))

    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    options = ["--source=webdataset", f"--cluster={cluster.address}", f"--out={tmp_path / 'far'}"]
    far = main_in_process("can_jax.data.index", data, *options)
    assert far.returncode == 0, far.stderr
    watcher.join(10)
    assert killed and killed[0] < 60, "the node was killed after the work was done"
    options = ["--source=webdataset", "--workers=1", f"--out={tmp_path / 'near'}"]
    main_in_process("can_jax.data.index", data, *options).check_returncode()
    same_files(tmp_path / "near", tmp_path / "far")
    assert len((tmp_path / "far" / "undecodable.txt").read_text().splitlines()) == 12


def test_features_and_shards_are_the_same(cluster, tmp_path):
    data = samples.imagenet(tmp_path / "data", train=7, val=2)
    run = samples.run_directory(tmp_path / "run")
    one_device = os.environ | {"XLA_FLAGS": ""}  # as on the nodes; the tests have eight
    for place, options in (("far", [f"--cluster={cluster.address}"]), ("near", [])):
        (tmp_path / place).mkdir()
        embed = [
            sys.executable, "-m", "can_jax.embed", f"--checkpoint={run}", f"--data={data}",
            "--split=train", f"--output={tmp_path / place / 'features.npz'}", *options,
        ]  # fmt: skip
        subprocess.run(embed, env=one_device, cwd=ROOT, check=True)
        shards = tmp_path / place / "shards"
        done = main_in_process("can_jax.data.imagenet", data, shards, "--shards=3", *options)
        assert done.returncode == 0, done.stderr
    for folder in ("", "shards"):
        same_files(tmp_path / "near" / folder, tmp_path / "far" / folder)
    for split in ("train", "val"):
        assert len(list((tmp_path / "far" / "shards").glob(f"{split}-*.tfrecord"))) == 3


def test_errors_of_a_cluster_are_clear(cluster, monkeypatch):
    results = Workers(cluster=cluster.address).results
    assert dict(results(hundreds, [1, 2, 3, 4])) == {0: 100, 1: 200, 2: 300, 3: 400}
    with pytest.raises(UserError, match="three is refused"):
        list(results(square, [1, 2, 3]))
    monkeypatch.setattr(workers, "_version", lambda: "9.9.9")
    with pytest.raises(UserError, match=r"a node has can_jax .*, this machine has 9.9.9; install"):
        list(results(square, [1]))
    with pytest.raises(UserError, match=r"--cluster=127.0.0.1:1: no Ray cluster answers"):
        list(Workers(cluster="127.0.0.1:1").results(square, [1]))
