import json

import jax
import numpy as np
import pytest

from can_jax.benchmark.pillow import TwoViews, count_images
from can_jax.config import default_config
from can_jax.utils.errors import UserError
from tests.data.samples import encode
from tests.helpers.runs import main_in_process

STAGES = ("reads_alone", "decode_only", "crops", "host_pipeline", "to_device", "pil_two_view")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
        (tmp_path / f"{i}.jpg").write_bytes(encode(image, "jpeg"))
    (tmp_path / "6.jpg").write_bytes(b"broken")
    return tmp_path


def benchmark(*arguments):
    return main_in_process("can_jax.benchmark", *arguments)


SHORT = ("--rounds=1", "--seconds=0.1", "--image_size=32", "--batch_size=8", "--threads=1")


def test_every_stage_is_measured(folder, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    run = benchmark("input", f"--path={folder}", "--json", *SHORT)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert all(found[stage] > 0 for stage in STAGES)
    assert found["python_limit"] > 0
    assert found["examples"] == 7 and found["threads"] == 1


@pytest.mark.slow
def test_table_shows_every_stage(folder):
    table = benchmark("input", f"--path={folder}", *SHORT)
    assert all(stage in table.stdout for stage in STAGES)


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "a.gif").write_bytes(encode(np.zeros((4, 4, 3), np.uint8), "gif"))
    for arguments, message in [
        (("input",), "data.path is not set"),
        (("input", f"--path={tmp_path / 'none'}"), "is not a folder"),
        (("input", f"--path={tmp_path}"), "none of 1 sampled images"),
        (("input", "--source=shapes"), "choose one of folder, tfrecord, webdataset, tfds"),
        (("stop",), "choose one of input, step"),
        ((), "SUBJECT is missing"),
    ]:
        run = benchmark(*arguments)
        assert run.returncode == 1 and message in run.stderr, run.stderr


def two_views(**changes):
    names = TwoViews.__dataclass_fields__.keys() - {"size"}
    settings = {name: default_config().augment[name] for name in names} | changes
    return TwoViews(size=(24, 32), **settings)


def test_peer_makes_normalised_views():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    views = two_views()(encode(image))
    assert views.shape == (2, 3, 24, 32) and views.dtype == np.float32
    assert not np.array_equal(views[0], views[1])
    assert abs(views).max() < 3


def test_peer_without_decodable_images_is_an_error():
    # As in a worker process in which Pillow can decode no image.
    with pytest.raises(UserError, match="Pillow can decode none of the sampled images"):
        count_images(two_views(), 0.1)


def test_peer_without_colours_is_a_crop():
    ramp = np.arange(60, dtype=np.uint8)[None, :, None].repeat(50, 0).repeat(3, 2)
    plain = two_views(
        flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3
    )
    for view in plain(encode(ramp)):
        assert (np.diff(view[0], axis=1) >= 0).all() and 5 < np.ptp(view[:, 0, :]) <= 59


def test_peer_turns_hues():
    red = np.full((24, 32, 3), (200, 40, 40), np.uint8)
    plain = {"flip": 0.0, "grayscale": 0.0, "blur": 0.0, "jitter": 1.0, "views": 40}
    plain |= {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    plain |= {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}

    def colours(hue):
        views = two_views(hue=hue, **plain)(encode(red, "png"))
        return {tuple(view[:, 12, 16].round().astype(int)) for view in views}

    assert len(colours(0.5)) > 10
    assert colours(0.0) == {(200, 40, 40)}
