"""The same photos in every kind of container."""

import gzip

import numpy as np

from tests.data.samples import encode, write_tar, write_tfrecord

COUNT = 24
RNG = np.random.default_rng(0)
PHOTOS = [
    encode(RNG.integers(0, 256, (30, 24 + i, 3), dtype=np.uint8), "jpeg") for i in range(COUNT)
]
LABELS = [0] * 12 + [1] * 12


def write_photos(folder):
    """Write the same photos, in the same order, in every container."""
    for i, (photo, label) in enumerate(zip(PHOTOS, LABELS, strict=True)):
        path = folder / "folder" / str(label) / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo)
    for shard in range(4):
        rows = range(6 * shard, 6 * shard + 6)
        members = []
        for i in rows:
            members.append((f"{i:06d}.jpg", PHOTOS[i]))
            members.append((f"{i:06d}.cls", str(LABELS[i]).encode()))
        tar = folder / "tars" / f"train-{shard:06d}.tar"
        write_tar(tar, members)
        (folder / "tars.gz").mkdir(exist_ok=True)
        (folder / "tars.gz" / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
        record = folder / "records" / f"train-{shard}.tfrecord"
        write_tfrecord(record, [PHOTOS[i] for i in rows], [LABELS[i] for i in rows])
        (folder / "records.gz").mkdir(exist_ok=True)
        (folder / "records.gz" / record.name).write_bytes(gzip.compress(record.read_bytes()))
    return folder


READ = {"folder": "folder", "tars": "webdataset", "records": "tfrecord"}
STREAMED = {
    "tars": "webdataset", "tars.gz": "webdataset", "records": "tfrecord", "records.gz": "tfrecord",
}  # fmt: skip
STREAM = {"streaming": True, "examples": COUNT, "window": 7}
