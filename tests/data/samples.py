"""The same images in every kind of container, written with the libraries of their formats."""

import io
import tarfile

import numpy as np
from PIL import Image

from can_jax.utils.tensorflow import tensorflow

LABELS = [0, 1]


def random_image(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def example(content, label=None, image_key="image/encoded"):
    tf = tensorflow()
    feature = {image_key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))}
    if label is not None:
        number = tf.train.Int64List(value=[label])
        feature["image/class/label"] = tf.train.Feature(int64_list=number)
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_tfrecord(path, contents, labels=None, image_key="image/encoded"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tensorflow().io.TFRecordWriter(str(path)) as writer:
        for i, content in enumerate(contents):
            writer.write(example(content, labels[i] if labels else None, image_key))


def write_tar(path, members):
    """Members are (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_webdataset(path, contents, labels=None, first=0):
    members = []
    for i, content in enumerate(contents):
        members.append((f"{first + i:06d}.png", content))
        if labels:
            members.append((f"{first + i:06d}.cls", str(labels[i]).encode()))
    write_tar(path, members)
