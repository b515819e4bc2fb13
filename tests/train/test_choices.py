"""The settings that `can-jax train --data` chooses, and those that it leaves alone."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from can_jax.config.resolve import load_recipe, resolve, to_json
from can_jax.data.sources.survey import Survey, survey
from can_jax.distributed.hardware import Devices
from can_jax.models.backbones import BACKBONES
from can_jax.train.choices import choose, patch_of, recipe_for, what_fits
from can_jax.train.memory import parameter_count, step_bytes
from can_jax.train.pretrain import explained_memory
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.runs import main_in_process

GIB = 2**30
CARD = Devices("gpu", "NVIDIA GeForce RTX 4090", 1, int(17.7 * GIB), True)
CPU = Devices("cpu", "cpu", 1, None, False)
PHOTOS = Survey("folder", 20_000, 480)


def recipe(name):
    return load_recipe(__file__, name)


def chosen(name, devices, found=PHOTOS, given=(), stored=False):
    config = recipe(name)
    config.data.path = "/data"
    choices = choose(config, given, devices, found, stored)
    return resolve(config), {choice.key: choice for choice in choices}


def test_estimate_of_the_memory_is_near_the_measured_one():
    """By XLA's compiler for the H100: see benchmarks/NOTES.md."""
    programs = {
        ("vit_b", 256): {"none": 29.9, "dots": 18.6, "dots_no_batch": 18.6, "full": 6.3},
        ("vit_l", 64): {"none": 17.6, "dots": 12.2, "full": 6.3},
        ("vit_s", 512): {"none": 24.1},
    }
    for (name, batch), needed in programs.items():
        for remat, gib in needed.items():
            config = recipe(name)
            config.data.path, config.batch_size, config.model.remat = "/data", batch, remat
            config = resolve(config)
            estimate = step_bytes(config, parameter_count(config), 1) / GIB
            assert gib < estimate < 1.6 * gib, (name, remat)
    config = recipe("vit_b")
    config.data.path, config.batch_size, config.model.attention = "/data", 256, "xla"
    config.model.remat = "none"
    config = resolve(config)
    assert 49.3 < step_bytes(config, parameter_count(config), 1) / GIB < 1.2 * 49.3


@pytest.mark.parametrize("gib", [7, 14, 21, 36, 72])
@pytest.mark.parametrize("name", ["vit_s", "vit_b"])
def test_chosen_batch_fits_one_card_by_the_estimate(name, gib):
    devices = dataclasses.replace(CARD, memory=gib * GIB)
    config, choices = chosen(name, devices)
    assert step_bytes(config, parameter_count(config), 1) <= gib * GIB
    assert config.batch_size >= 256 and config.model.dtype == "bfloat16"
    assert "GiB per device" in choices["batch_size"].reason


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 8, 12, 96, 1000, 1024])
def test_chosen_batch_fits_any_number_of_cards(count):
    devices = dataclasses.replace(CARD, count=count)
    config, _ = chosen("vit_b", devices, Survey("folder", 10**6, 480))
    assert config.batch_size % (count * config.accumulation.microbatches) == 0
    assert config.batch_size >= 256 and config.model.remat != "full"
    assert step_bytes(config, parameter_count(config), count) <= CARD.memory


def test_settings_of_the_command_line_stay():
    given = {"batch_size": 64, "model.dtype": "float32", "data.image_size": 192}
    config = recipe("vit_b")
    config.data.path = "/data"
    config.update_from_flattened_dict(given)
    choices = choose(config, given, CARD, PHOTOS)
    assert not {choice.key for choice in choices} & given.keys()
    assert (config.batch_size, config.model.dtype, config.data.image_size) == (64, "float32", 192)


@pytest.mark.parametrize(
    ("remat", "microbatches"), [("none", 1), ("none", None), ("full", None), (None, 4)]
)
def test_batch_fits_with_settings_of_the_command_line(remat, microbatches):
    given = {"model.remat": remat, "accumulation.microbatches": microbatches}
    given = {key: value for key, value in given.items() if value is not None}
    config = recipe("vit_b")
    config.data.path = "/data"
    config.update_from_flattened_dict(given)
    choose(config, given, dataclasses.replace(CARD, memory=10 * GIB), PHOTOS)
    config = resolve(config)
    assert step_bytes(config, parameter_count(config), 1) <= 10 * GIB
    values = {"model.remat": config.model.remat}
    values["accumulation.microbatches"] = config.accumulation.microbatches
    assert given.items() <= values.items() and config.batch_size >= 16


def test_resumed_run_changes_only_what_the_results_do_not_depend_on():
    config, _ = chosen("vit_b", CARD)
    before = config.copy_and_resolve_references()
    other = Devices("gpu", "Tesla T4", 8, 13 * GIB, False)
    choose(config, {}, other, None, stored=True)
    flat, old = (dict(c.items()) for c in (config, before))
    changed = {key for key in flat if flat[key] != old[key]}
    assert changed <= {"mesh", "model", "accumulation"}
    assert config.model.dtype == "bfloat16" and config.batch_size == before.batch_size


@pytest.mark.parametrize("gib", [10, 72])
def test_resumed_run_with_microbatch_negatives_keeps_its_microbatches(gib):
    config, _ = chosen("vit_b", CARD)
    config.accumulation.update(negatives="microbatch", microbatches=8)
    devices = dataclasses.replace(CARD, memory=gib * GIB)
    choose(config, {}, devices, None, stored=True)
    assert config.accumulation.microbatches == 8
    config.accumulation.negatives = "batch"
    choose(config, {}, devices, None, stored=True)
    assert config.accumulation.microbatches != 8


@pytest.mark.parametrize(("shard_state", "fsdp"), [("auto", 1), (False, 8)])
def test_state_that_fills_a_device_is_split(shard_state, fsdp):
    """Where it is split over `data`, it fills no device."""
    config = recipe("vit_l")
    config.data.path, config.mesh.shard_state = "/data", shard_state
    choose(config, (), dataclasses.replace(CARD, count=8, memory=10 * GIB), PHOTOS, False)
    assert resolve(config).mesh.fsdp == fsdp


@pytest.mark.parametrize(
    ("given", "fsdp"), [({"tensor": 4}, 2), ({"data": 8}, 1), ({"fsdp": 1}, 1), ({"fsdp": 4}, 4)]
)
def test_axes_of_the_command_line_leave_room_for_the_others(given, fsdp):
    config = recipe("vit_l")
    config.data.path, config.mesh.shard_state = "/data", False
    config.mesh.update(given)
    keys = [f"mesh.{axis}" for axis in given]
    choose(config, keys, dataclasses.replace(CARD, count=8, memory=10 * GIB), PHOTOS, False)
    mesh = resolve(config).mesh
    assert mesh.fsdp == fsdp and given.items() <= mesh.to_dict().items()
    assert mesh.tensor * mesh.fsdp * (1 if mesh.data == -1 else mesh.data) <= 8


def test_backbone_whose_memory_is_unknown_is_trained_and_advised():
    unknown = dataclasses.replace(BACKBONES.get("vit"), flops=lambda config, pixels, visible: 1)
    with BACKBONES.temporarily("other", unknown):
        config = recipe("vit_s")
        config.data.path, config.model.backbone, config.model.patch_embed = "/d", "other", "linear"
        choices = {choice.key: choice for choice in choose(config, (), CARD, PHOTOS)}
        assert "the backbone other needs is unknown" in choices["batch_size"].reason
        assert "smaller config.batch_size" in what_fits(resolve(config), CARD)


def test_cpu_gets_a_small_model_in_float32():
    assert recipe_for(CPU) == "small" and recipe_for(CARD) == "vit_b"
    assert recipe_for(dataclasses.replace(CARD, memory=11 * GIB)) == "vit_s"
    config, choices = chosen("small", CPU, Survey("arrays", 20_000, 32, (32, 32), True))
    assert config.data.image_size == (32, 32) and config.model.patch_size == 4
    assert config.model.dtype == "float32" and config.batch_size == 128
    assert config.probe.every_epochs == 5 and config.data.source == "arrays"
    config, _ = chosen("small", CPU)
    assert config.data.image_size == (64, 64) and config.model.patch_size == 8


@pytest.mark.parametrize("steps", [0, 500])
def test_interval_of_the_probe_in_steps_stays(steps):
    labeled = PHOTOS._replace(labeled=True)
    config, given = recipe("small"), {"probe.every_steps": steps}
    config.data.path, config.probe.every_steps = "/data", steps
    choose(config, given, CPU, labeled)
    assert (resolve(config).probe.every_steps, config.probe.every_epochs) == (steps, None)
    config, _ = chosen("quickstart", CPU, labeled)  # whose own interval is in steps
    assert (config.probe.every_steps, config.probe.every_epochs) == (200, None)


def test_few_images_get_a_small_batch():
    assert chosen("vit_s", CARD, Survey("folder", 200, 300))[0].batch_size <= 50
    config, choices = chosen("small", CPU, Survey("folder", 349, 375))
    assert config.batch_size == 64
    assert "at most a quarter of the 349 images" in choices["batch_size"].reason
    assert "images" not in chosen("small", CPU)[1]["batch_size"].reason


def test_time_sets_the_checkpoints_and_the_warmup():
    config = recipe("quickstart")
    config.total_steps, config.total_minutes = None, 10.0
    config.optimizer.warmup_steps, config.optimizer.warmup_share = 5, None
    choose(config, {"total_minutes": 10.0}, CPU, None)
    assert config.checkpoint.every_minutes == 0.5
    assert resolve(config).optimizer.warmup_share == 0.05


@pytest.mark.parametrize(
    ("sides", "patch"),
    [
        ((32, 32), 4), ((96, 96), 12), ((224, 224), 16), ((28, 28), 4), ((48, 64), 4),
        ((17, 17), 1), ((128, 192), 16), ((128, 136), 2),
    ],
)  # fmt: skip
def test_patch_divides_both_sides(sides, patch):
    assert patch_of(*sides) == patch


@pytest.mark.parametrize(
    ("key", "value", "devices", "size", "patch"),
    [
        ("data.image_size", 64, CARD, 64, 8),
        ("data.image_size", 100, CARD, 100, 10),
        ("data.image_size", (64, 96), CARD, (64, 96), 8),
        ("data.image_size", 224, CPU, 224, 16),
        ("model.patch_size", 14, CARD, 224, 14),
        ("model.patch_size", 12, CPU, 60, 12),
    ],
)
def test_image_size_and_patch_size_match_if_one_is_given(key, value, devices, size, patch):
    config = recipe("vit_s")
    config.data.path = "/data"
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    choices = {c.key: c for c in choose(config, (key,), devices, Survey("folder", 20_000, 500))}
    config = resolve(config)
    assert config.model.patch_size == patch
    assert config.data.image_size == (size if isinstance(size, tuple) else (size, size))
    if key == "data.image_size" and "model.patch_size" in choices:
        height, width = config.data.image_size
        reason = f"{height // patch} x {width // patch} patches"
        assert choices["model.patch_size"].reason == reason


def test_images_without_a_suitable_patch_size_are_resized():
    config, choices = chosen("vit_s", CARD, Survey("arrays", 200_000, 59, (59, 61)))
    assert config.data.image_size == (48, 48) and config.model.patch_size == 6
    assert choices["model.patch_size"].reason == "8 x 8 patches"


def test_survey_tells_folders_shards_and_arrays_apart(tmp_path):
    for index in range(3):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{index}.jpg")
    assert survey(str(tmp_path)) == Survey("folder", 3, 40)
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.savez(
        arrays / "train.npz", images=np.zeros((5, 8, 12, 3), np.uint8), labels=np.zeros(5, int)
    )
    assert survey(str(arrays)) == Survey("arrays", 5, 8, (8, 12), True)
    assert survey("/data/{000..127}.tar").source == "webdataset"
    assert survey("/data/train-*.tfrecord").source == "tfrecord"
    (tmp_path / "empty").mkdir()
    refused = {
        "empty": "holds no images", "missing": "does not exist",
        "arrays/*.npz": "given by their folder, not by a pattern",
    }  # fmt: skip
    for path, message in refused.items():
        with pytest.raises(UserError, match=message):
            survey(str(tmp_path / path))


def test_out_of_memory_names_what_would_fit():
    config = small_config(batch_size=512)
    line = what_fits(config, CARD)
    assert "--config.accumulation.microbatches=" in line and "--config.batch_size=256" in line
    config.accumulation.negatives = "microbatch"
    assert "each microbatch has its own negatives" in what_fits(config, CARD)
    tiny = dataclasses.replace(CARD, memory=GIB // 4)
    assert what_fits(config, tiny).startswith("no smaller batch is expected to fit: ")
    message = r"out of memory on .*batch_size=512.*; expected to fit: "
    with pytest.raises(UserError, match=message), explained_memory(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError), explained_memory(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: other")


@pytest.mark.parametrize(("batch", "microbatches"), [(96, 32), (64, 64)])
def test_out_of_memory_is_reported_whatever_half_the_batch_would_be(batch, microbatches):
    config = small_config(
        batch_size=batch, accumulation__microbatches=microbatches, accumulation__negatives="batch"
    )
    message = f"out of memory on .*batch_size={batch}.*microbatches={microbatches}"
    with pytest.raises(UserError, match=message), explained_memory(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


def test_command_prints_what_it_chooses_and_the_configuration(tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((64, 32, 32, 3), np.uint8))
    done = main_in_process(
        "can_jax.main", f"--data={tmp_path}", "--for=2h", "--print_config",
        "--config.optimizer.learning_rate=1e-4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "small: " in done.stdout and "total_minutes = 120.0" in done.stdout
    assert "optimizer.learning_rate = 0.0001" in done.stdout
    assert f"data.path = {str(tmp_path)!r}" in done.stdout
    assert "data.image_size = (32, 32)" in done.stdout


def test_resume_prints_that_it_does_not_read_the_recipe_again(tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((64, 32, 32, 3), np.uint8))
    run = tmp_path / "run"
    run.mkdir()
    config = recipe("small")
    config.data.update(source="arrays", path=str(tmp_path))
    (run / "config.json").write_text(to_json(resolve(config)))
    options = [f"--data={tmp_path}", f"--workdir={run}", "--print_config"]
    for more, printed in ((["--config=vit_s"], True), ([], False)):
        done = main_in_process("can_jax.main", *more, *options)
        assert done.returncode == 0, done.stderr
        assert "model.width = 96" in done.stdout
        assert ("; --config is not read again" in done.stdout) == printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=/no/such"], "--data=/no/such does not exist"),
        (["--data=/x", "--config.data.path=/y"], "--data and --config.data.path"),
        (["--data=/x", "--for=2x"], "--for=2x: give a time"),
        (["--data=/x", "--for=2h", "--config.total_steps=3"], "both set the length"),
        ([], "--config=NAME is missing"),
    ],
)
def test_contradictions_are_refused(options, message, tmp_path):
    done = main_in_process("can_jax.main", *options, f"--workdir={tmp_path}")
    assert done.returncode == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_first_command_trains_resumes_and_says_what_to_do_next(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "cells").mkdir()
    np.savez(
        tmp_path / "cells" / "train.npz", images=rng.integers(0, 256, (64, 16, 16, 3), np.uint8)
    )
    options = ["--data=cells", "--config.model.depth=1", "--config.batch_size=16"]
    done = main_in_process("can_jax.main", *options, "--for=4steps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "can-jax evaluate --config=knn --checkpoint=runs/cells" in done.stdout
    assert (tmp_path / "runs" / "cells" / "checkpoints" / "4").exists()
    more = main_in_process("can_jax.main", "--data=cells", "--for=6steps", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "resumed from the checkpoint of step 4" in more.stdout
    assert "model.depth" not in more.stdout
