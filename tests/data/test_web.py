"""Data on web servers and on the Hugging Face Hub, read through real HTTP."""

import shutil
import subprocess

import numpy as np
import pytest

from can_jax.data.sources.registry import open_source
from can_jax.data.storage.mirror import mirrored
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.losses import losses_of
from tests.helpers.photos import PHOTOS, READ, STREAM, STREAMED, write_photos
from tests.helpers.runs import main_in_process
from tests.helpers.web_server import serve

pytest.importorskip("obstore")
HUB = "hf://datasets/user/name"
SHARDS = {
    "tars": "tars/train-{000000..000003}.tar",
    "records": "records/train-{0..3}.tfrecord",
    "tars.gz": "tars.gz/train-{000000..000003}.tar.gz",
    "records.gz": "records.gz/train-{0..3}.tfrecord",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "data")


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """A PEM file for the server, from an authority that clients trust."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")

    def openssl(command):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True, cwd=tmp_path)

    key = "-newkey rsa:2048 -nodes -keyout"
    openssl(f"req -x509 {key} ca.key -out ca.crt -days 2 -subj /CN=authority")
    openssl(f"req {key} server.key -out server.csr -subj /CN=localhost")
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE")
    signed = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names"
    openssl(f"x509 -req -in server.csr -out server.crt {signed}")
    pem = tmp_path / "server.pem"
    pem.write_text((tmp_path / "server.key").read_text() + (tmp_path / "server.crt").read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    return pem


def images_of(path, source):
    config = small_config()
    config.data.update({"source": source, "path": path})
    opened = open_source(config.data, "train")
    return opened.read(np.arange(opened.examples))[0]


@pytest.mark.parametrize("kind", ["tars", "records"])
def test_losses_of_shards_on_a_web_server(kind, photos, certificate):
    with serve(photos, certificate) as port:
        there = losses_of(source=READ[kind], path=f"https://localhost:{port}/{SHARDS[kind]}")
    assert there == losses_of(source=READ[kind], path=f"{photos}/{kind}")


@pytest.mark.parametrize("kind", STREAMED)
def test_losses_of_a_stream_from_a_web_server(kind, photos):
    with serve(photos) as port:
        url = f"http://127.0.0.1:{port}/{SHARDS[kind]}"
        there = losses_of(source=STREAMED[kind], path=url, **STREAM)
    assert there == losses_of(source=STREAMED[kind], path=f"{photos}/{kind}", **STREAM)


@pytest.mark.parametrize("kind", READ)
def test_losses_of_a_data_set_on_the_hub(kind, photos, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with serve(photos, token="secret") as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        there = losses_of(source=READ[kind], path=f"{HUB}/{kind}")
    assert there == losses_of(source=READ[kind], path=f"{photos}/{kind}")


def test_streams_from_the_hub(photos, monkeypatch):
    with serve(photos) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        there = losses_of(source="webdataset", path=f"{HUB}/tars.gz", **STREAM)
    assert there == losses_of(source="webdataset", path=f"{photos}/tars.gz", **STREAM)


def test_index_of_a_web_server_is_written_and_read_elsewhere(photos):
    with serve(photos) as port:
        data = f"http://127.0.0.1:{port}/{SHARDS['tars']}"
        done = main_in_process("can_jax.data.index", data)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "cannot be written: give a local folder with --out" in done.stderr
        assert "examples indexed" not in done.stdout  # before any image is examined
        with pytest.raises(UserError, match="an index cannot be read from a web server; download"):
            mirrored(f"http://127.0.0.1:{port}/tars/.can_jax_index/train")


def test_server_that_fails_loses_nothing(photos, monkeypatch):
    with serve(photos, failing=0.1) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        for path in (f"http://127.0.0.1:{port}/{SHARDS['tars']}", f"{HUB}/tars"):
            for _ in range(3):
                assert images_of(path, "webdataset") == PHOTOS


def test_data_set_that_refuses_or_is_missing_is_named(photos, monkeypatch):
    with serve(photos, token="secret") as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(UserError, match=f"{HUB}/tars cannot be listed: HTTP 401"):
            images_of(f"{HUB}/tars", "webdataset")
        monkeypatch.setenv("HF_TOKEN", "secret")
        with pytest.raises(UserError, match="name/no does not exist"):
            images_of(f"{HUB}/no", "webdataset")
        with pytest.raises(UserError, match=f"http://127.0.0.1:{port}/no.tar"):
            images_of(f"http://127.0.0.1:{port}/no.tar", "webdataset")
