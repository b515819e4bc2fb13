"""`python -m can_jax.embed`: the features of a whole data set in a file."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from ml_collections import ConfigDict

from can_jax.data.evaluation.pairs import open_own
from can_jax.data.sources.base import ArraySource
from can_jax.data.sources.mixture import MixtureSource
from can_jax.distributed.mesh import make_mesh
from can_jax.encoders import embed as embedding
from can_jax.encoders.encoder import Encoder, evaluated_encoder
from can_jax.encoders.images import preprocess
from can_jax.encoders.pretrained import open_encoder
from can_jax.evaluate.config import resolve_evaluation
from can_jax.evaluate.split_features import SplitFeatureExtractor
from can_jax.utils.errors import UserError
from can_jax.weights.read_weights import read_weights
from can_jax.weights.shipped import FOLDER
from tests.evaluate import samples
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT, main_in_process


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run, and a folder with a file that is no image."""
    run = samples.run_directory(tmp_path_factory.mktemp("run"))
    data = samples.imagenet(tmp_path_factory.mktemp("data"), train=7, val=2)
    (data / "train" / samples.CLASSES[1] / "broken.JPEG").write_bytes(b"no image")
    return run, data


@pytest.fixture(scope="module")
def encoder(places):
    run, data = places
    config = resolve_evaluation(samples.evaluation("knn", data, features="both"))
    mesh = make_mesh(config.mesh)
    return Encoder(open_encoder(str(run), False, config, mesh), mesh, 8)


def npz(path):
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


class Stop(Exception):
    pass


def test_features_are_those_of_an_evaluation_after_an_interruption(
    places, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "PART", 8)
    output, calls = tmp_path / "features.npz", []

    def stop(done, total):
        if (tmp_path / "features.npz.parts" / "000000000000.npz").exists():
            raise Stop

    with pytest.raises(Stop):
        embedding.embed(encoder, encoder.data, "train", output, "both", stop)
    monkeypatch.setattr(embedding, "preprocess", lambda *a: calls.append(a) or preprocess(*a))
    summary = embedding.embed(encoder, encoder.data, "train", output, "both")
    assert summary == (21, 1, 48) and len(calls) == 22 - 8  # the first part is not repeated
    found = npz(output)
    mesh = make_mesh(samples.evaluation("knn").mesh)
    extract = SplitFeatureExtractor(encoder._subject, mesh, 8)
    wanted = extract(open_own(encoder.data, "train", None))
    np.testing.assert_array_equal(found["labels"], wanted.labels)
    # Single bytes of the views differ by 1, where Pillow and TensorFlow round differently.
    np.testing.assert_allclose(found["features"], wanted.outputs, atol=5e-3)
    assert found["label_names"].tolist() == list(samples.CLASSES)
    assert found["names"][0] == f"{samples.CLASSES[0]}/{samples.CLASSES[0]}_0.JPEG"
    assert json.loads(str(found["identity"]))["encoder"]["sha256"] == encoder.sha256
    skipped = (tmp_path / "features.npz.skipped.csv").read_text().splitlines()
    assert len(skipped) == 2 and "broken.JPEG" in skipped[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "features.npz",
        "features.npz.skipped.csv",
    ]
    with pytest.raises(UserError, match="exists already"):
        embedding.embed(encoder, encoder.data, "train", output)


def test_arrays_of_a_mixture_are_decoded():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    arrays = ArraySource(images, np.arange(3, dtype=np.int32))
    data = small_config().data
    with ThreadPoolExecutor(1) as pool:
        expected, loaded = (
            embedding._load(source, data, pool, range(3))
            for source in (arrays, MixtureSource([arrays], [1.0]))
        )
    np.testing.assert_array_equal(np.stack(loaded.views), np.stack(expected.views))


# The keys of the identity that every version has stored.
OLDER = ("encoder", "image_size", "mean", "std", "features", "data")

SLOWLY = """
import time
from can_jax.cli.start import Entry
from can_jax.encoders import embed
preprocess = embed.preprocess
def slow(*arguments):
    time.sleep(0.2)
    return preprocess(*arguments)
embed.PART, embed.preprocess = 8, slow
Entry("embed").run()
"""


@pytest.mark.slow
def test_features_are_those_of_an_evaluation_after_a_kill(places, encoder, tmp_path):
    run, data = places
    output = tmp_path / "features.npz"
    arguments = [f"--checkpoint={run}", f"--data={data}", "--split=train", "--features=both"]
    command = [sys.executable, "-c", SLOWLY, *arguments, f"--output={output}"]
    process = subprocess.Popen(command, cwd=ROOT)
    part = tmp_path / "features.npz.parts" / "000000000000.npz"
    deadline = time.monotonic() + 300
    while not part.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL and part.exists() and not output.exists()
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    extract = SplitFeatureExtractor(encoder._subject, make_mesh(samples.evaluation("knn").mesh), 8)
    wanted = extract(open_own(encoder.data, "train", None))
    found = npz(output)
    np.testing.assert_array_equal(found["labels"], wanted.labels)
    np.testing.assert_allclose(found["features"], wanted.outputs, atol=5e-3)
    assert not part.parent.exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_names_that_are_not_utf_8_are_escaped(encoder, tmp_path, suffix):
    folder = samples.imagenet(tmp_path / "data", train=0, val=1) / "val" / samples.CLASSES[0]
    (image,) = folder.iterdir()
    image.rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.JPEG"))
    data = ConfigDict(encoder.data.to_dict() | {"path": str(tmp_path / "data")})
    embedding.embed(encoder, data, "val", tmp_path / f"a{suffix}")
    assert b"caf\\udce9.JPEG" in (tmp_path / f"a{suffix}").read_bytes()


def test_every_format_holds_the_same(encoder, tmp_path):
    stale = tmp_path / "a.npz.skipped.csv"  # It lists images of an earlier call, which was removed.
    stale.write_text("name,reason\nold.png,broken\n")
    for suffix in (".npz", ".csv", ".parquet"):
        embedding.embed(encoder, encoder.data, "val", tmp_path / f"a{suffix}")
    assert not stale.exists()
    wanted = npz(tmp_path / "a.npz")
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == len(wanted["names"]) == 6
    assert [row["name"] for row in rows] == table["name"] == wanted["names"].tolist()
    assert [row["class"] for row in rows] == table["class"]
    assert [int(row["label"]) for row in rows] == table["label"] == wanted["labels"].tolist()
    np.testing.assert_array_equal(np.array(table["features"], np.float32), wanted["features"])
    values = [[float(row[f"feature_{i}"]) for i in range(24)] for row in rows]
    np.testing.assert_array_equal(np.array(values, np.float32), wanted["features"])


def test_parts_of_another_call_are_refused(encoder, tmp_path):
    with pytest.raises(Stop):
        embedding.embed(encoder, encoder.data, "val", tmp_path / "a.npz", advance=raising)
    with pytest.raises(UserError, match="features was patches, is class; remove that folder"):
        embedding.embed(encoder, encoder.data, "val", tmp_path / "a.npz", "class")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__heads": 2}, "model.heads was 4, is 2"),
        ({"model__gelu": "tanh"}, "model.gelu was null, is tanh"),
        ({"model__dtype": "bfloat16"}, "model.dtype was float32, is bfloat16"),
        ({"data__exif_orientation": True}, "decoding.exif_orientation was false, is true"),
        ({"data__range": (0, 4095)}, r"decoding.range was null, is \[0"),
        ({"data__image_key": "image"}, "decoding.image_key was image/encoded, is image"),
    ],
)
def test_parts_of_another_model_or_decoding_are_refused(places, tmp_path, changes, message):
    """Weights without a configuration, whose checksum says nothing about heads and GELU."""
    output, arrays = tmp_path / "a.npz", read_weights(epath.Path(FOLDER / "can-cifar10")).arrays
    np.savez(tmp_path / "weights.npz", **arrays)
    given = {"model__mean": 0.5, "model__std": 0.25, "model__heads": 4}

    def embed(**settings):
        config = resolve_evaluation(samples.evaluation("knn", places[1], **given, **settings))
        encoder = evaluated_encoder(str(tmp_path / "weights.npz"), config)
        embedding.embed(encoder, encoder.data, "val", output, advance=raising)

    with pytest.raises(Stop):
        embed()
    given |= changes
    with pytest.raises(UserError, match=f"from those of this call: {message}"):
        embed()
    stored = tmp_path / "a.npz.parts" / "identity.json"
    older = {k: v for k, v in json.loads(stored.read_text()).items() if k in OLDER}
    stored.write_text(json.dumps(older))
    with pytest.raises(Stop):  # an older version did not store these keys
        embed()


def test_output_of_another_process_is_not_overwritten(encoder, tmp_path, monkeypatch):
    output, open_source = tmp_path / "a.npz", embedding.open_source

    def while_another_writes(*arguments):
        output.write_bytes(b"features")
        return open_source(*arguments)

    monkeypatch.setattr(embedding, "open_source", while_another_writes)
    with pytest.raises(UserError, match="exists already"):
        embedding.embed(encoder, encoder.data, "val", output)
    assert output.read_bytes() == b"features"


def raising(*_):
    raise Stop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output=a.txt"], "the suffix must be one of .parquet, .npz, .csv"),
        ([], "the data has the splits train, val: choose one with --split=NAME"),
        (["--split=train", "--data=/no/such"], "--data=/no/such does not exist"),
        (["--step=8"], "no checkpoint of step 8"),
        (
            ["--config=knn", "--config.data.test_examples=3"],
            "--config.data.test_examples has no effect on this command, which reads all images",
        ),
        (["--config=knn", "--config.knn.k=(3,)"], "--config.knn.k has no effect on this command"),
        (["--config=knn", "--config.held_out=0.5"], "--config.held_out has no effect on this com"),
        (
            ["--config=knn", "--config.data.split=val", "--split=train"],
            "--split and --config.data.split set the same value: give one of them",
        ),
    ],
)
def test_mistake_is_one_line(places, tmp_path, monkeypatch, options, message):
    run, data = places
    monkeypatch.chdir(tmp_path)
    arguments = [f"--checkpoint={run}", f"--data={data}", "--output=out.csv", *options]
    done = main_in_process("can_jax.embed", *arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_too_many_broken_images_stop_it(places, encoder, tmp_path):
    data = encoder.data
    with data.unlocked():
        data.skip_limit = 0.0
    with pytest.raises(UserError, match=r"1 of 22 images cannot be decoded.*broken\.JPEG"):
        embedding.embed(encoder, data, "train", tmp_path / "a.npz")
