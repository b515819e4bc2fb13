"""What a run that resumes keeps of the configuration that it began with."""

import contextlib
import json
import shutil

import pytest
from etils import epath

from can_jax.checkpoint.resume import is_given, to_store, with_stored
from can_jax.checkpoint.run_directory import append_start, first_config, read_config, read_starts
from can_jax.config.resolve import from_json, to_json
from can_jax.monitoring.console import Reporter
from can_jax.train.pretrain import continued
from can_jax.train.run_length import make_run_length
from can_jax.train.start import record_start, writing
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.runs import (
    command,
    contents,
    counting_steps,
    main_in_process,
    only_devices,
    run_in_process,
)

LEVEL = "noise.level_tokens"


def stored_without(config, *keys, **changes):
    """The text of a configuration as a version wrote it that did not have some keys."""
    stored = json.loads(to_json(config))
    for key in keys:
        *blocks, last = key.split(".")
        block = stored
        for name in blocks:
            block = block[name]
        del block[last]
    stored["optimizer"].update(changes)
    return json.dumps(stored)


def test_a_key_that_is_newer_than_the_run_keeps_its_old_meaning():
    text = stored_without(small_config(), LEVEL)
    config, kept = with_stored(small_config(), text)
    assert config.noise.level_tokens == "visible"
    assert kept == [
        "config.noise.level_tokens=visible, the value at the start of this run, is used instead "
        "of config.noise.level_tokens=all; to change it, give --config.noise.level_tokens=all"
    ]
    again, kept = with_stored(small_config(), to_store(config, text))  # the next time
    assert again.noise.level_tokens == "visible" and kept


def test_a_newer_key_that_the_recipe_sets_needs_the_command_line():
    """A recipe of a newer version may set it to other than the default, too."""
    text = stored_without(small_config(), "model.projector.final_norm", "optimizer.clip_norm")
    recipe = small_config(model__projector__final_norm=True, optimizer__clip_norm=2.0)
    config, kept = with_stored(recipe, text, ["optimizer.clip_norm"])
    assert (config.model.projector.final_norm, config.optimizer.clip_norm) == (False, 2.0)
    assert len(kept) == 1 and kept[0].endswith("give --config.model.projector.final_norm=True")
    again, _ = with_stored(small_config(), to_store(config, text))  # which stores the other key now
    assert again.optimizer.clip_norm is None


@pytest.mark.parametrize("stored", ["visible", "all"])
def test_a_stored_key_has_the_value_of_the_recipe(stored):
    text = to_json(small_config(noise__level_tokens=stored))
    config, kept = with_stored(small_config(), text)
    assert config.noise.level_tokens == "all" and not kept
    config, kept = with_stored(small_config(noise__level_tokens="visible"), text)
    assert config.noise.level_tokens == "visible" and not kept
    assert to_store(config, text) == to_json(config) == to_store(config, None)


def test_a_default_on_the_command_line_wins():
    text = stored_without(small_config(), LEVEL)
    config, kept = with_stored(small_config(), text, [LEVEL])
    assert config.noise.level_tokens == "all" and not kept
    written = to_store(config, text)
    assert from_json(written).noise.level_tokens == "all"
    again, kept = with_stored(small_config(), written)
    assert again.noise.level_tokens == "all" and not kept


def test_names_of_the_command_line():
    assert is_given("augment.mean", ["augment.mean[0]"]) and is_given("noise.target", ["noise"])
    assert not is_given("noise.target", ["noise.tar", "augment"])


def test_an_older_run_resumes_with_the_schedule_that_it_began_with():
    recipe = small_config(total_steps=4000, optimizer__warmup_steps=None)
    keys = ("optimizer.warmup_share", "optimizer.warmup_examples")
    text = stored_without(recipe, *keys, warmup_epochs=40.0)
    config, kept = with_stored(recipe, text)
    assert make_run_length(config, 64).warmup == 320
    said = "warmup_epochs=40.0, the value at the start of this run, is used instead of c"
    assert f"config.optimizer.{said}" in kept[0]
    again, _ = with_stored(recipe, to_store(config, text))  # the next time it resumes
    assert make_run_length(again, 64).warmup == 320
    chosen = small_config(total_steps=4000, optimizer__warmup_steps=7)
    assert make_run_length(with_stored(chosen, text)[0], 64).warmup == 7
    given, kept = with_stored(recipe, text, ["optimizer.warmup_share"])
    assert make_run_length(given, 64).warmup == 200 and not kept


def test_the_configuration_of_a_run_directory_is_continued(tmp_path, caplog):
    recipe, place = small_config(optimizer__warmup_steps=None), epath.Path(tmp_path)
    assert continued(recipe, place) is recipe
    share = "optimizer.warmup_share"
    (place / "config.json").write_text(stored_without(recipe, share, warmup_epochs=0.125))
    assert make_run_length(continued(recipe, place), 64).warmup == 1
    assert (
        "config.optimizer.warmup_epochs=0.125, the value at the start of this run, is used"
        in caplog.text
    )
    (place / "config.json").write_text(stored_without(recipe, share, warmup_epochs=-1.0))
    with pytest.raises(UserError, match=r"config.json: config.optimizer.warmup_epochs=-1.0: give"):
        continued(recipe, place)
    (place / "config.json").write_text('{"model": {"colour": 1}}')
    with pytest.raises(UserError, match=r"config.json cannot be read: config.model.colour is no"):
        continued(recipe, place)


def test_the_run_directory_stores_what_the_next_resume_needs(tmp_path, capsys):
    place, file = epath.Path(tmp_path), tmp_path / "config.json"
    file.write_text(stored_without(small_config(), LEVEL))
    for given, level in (([], None), ([], None), ([LEVEL], "all"), ([], "all")):
        with contextlib.closing(Reporter(0, 4)) as report:
            record_start(continued(small_config(), place, given), place, 2, {}, report)
        assert json.loads(file.read_text())["noise"].get("level_tokens") == level
        change = f"changed since this run began: {LEVEL} visible -> all"
        assert (change in capsys.readouterr().out) is (level == "all")


def test_the_command_line_tells_what_it_sets(recipe, tmp_path, caplog):
    """The run ends where it opens its data, which is after it read the directory."""
    (tmp_path / "config.json").write_text(stored_without(small_config(), LEVEL))
    options = command(recipe, tmp_path, "data.source=folder", "data.path=/no/such/place")[2:]
    main_in_process(*options)
    assert (
        "config.noise.level_tokens=visible, the value at the start of this run, is used"
        in caplog.text
    )
    caplog.clear()
    done = main_in_process(*options, f"--config.{LEVEL}=all")
    assert "/no/such/place" in done.stderr and "the start of this run" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.width=48", "total_steps=12"], "belongs to another model"),
        (
            ["model.patch_embed=dct"],
            "patch_embed is dct now, but this run was trained with whitened",
        ),
        (["seed=7"], "config.seed=7, but this run was trained with 0"),
        (["batch_size=8"], "--allow_changes=batch_size"),
        (["data.split=test"], "--allow_changes=data"),
        (["data.window=9"], "--allow_changes=data"),
        (
            ["data.shapes_count=72", "total_steps=12"],
            "config.data differs from the data of the checkpoint of step 6: it has 72 examples "
            "instead of 64, other labels, other content",
        ),
        (["init_from=/no/such/weights", "total_steps=3"], "past the end of this run"),
    ],
)
def test_a_start_that_is_refused_changes_nothing(finished, recipe, tmp_path, changes, message):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = contents(workdir)
    with counting_steps():
        done = run_in_process(recipe, workdir, *changes)
    assert done.returncode == 1 and message in done.stderr
    assert contents(workdir) == before


def test_a_damaged_checkpoint_stays_where_it_is_when_the_data_is_another(
    finished, recipe, tmp_path
):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "checkpoints" / "6" / "seal.json").write_text("")
    before = contents(workdir)
    with counting_steps():
        done = run_in_process(recipe, workdir, "data.shapes_count=72")
    assert done.returncode == 1 and "72 examples instead of 64" in done.stderr
    assert contents(workdir) == before


def test_another_batch_size_says_what_it_recounts(finished, recipe, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    quiet = ["probe.every_steps=0", "figures.every_steps=0"]
    main = command(recipe, workdir, *quiet, "batch_size=8", "total_steps=7")[2:]
    with counting_steps():
        done = main_in_process(*main, "--allow_changes=batch_size")
    assert done.returncode == 0, done.stderr
    assert "config.batch_size was 16 until step 6 and is 8 now: the epoch, " in done.stderr


def test_every_start_is_kept_and_compared_with_the_first(finished, recipe, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    quiet = ["probe.every_steps=0", "figures.every_steps=0"]
    main = [*command(recipe, workdir, *quiet, "seed=7", "total_steps=7")[2:]]
    with counting_steps(), only_devices(1):
        assert main_in_process(*main, "--allow_changes=seed").returncode == 0
        done = run_in_process(recipe, workdir, *quiet, "seed=7", "total_steps=8")
    assert done.returncode == 0, done.stderr  # it was trained with this seed, too
    for change in ("seed 0 -> 7", "total_steps 6 -> 8"):
        assert f"changed since this run began: {change}" in done.stdout
    starts = read_starts(epath.Path(workdir))
    assert [start["step"] for start in starts] == [0, 6, 7]
    assert [start["config"]["seed"] for start in starts] == [0, 7, 7]
    assert "--allow_changes=seed" in starts[1]["command"] and starts[1]["environment"]["versions"]
    assert "--allow_changes=color: choose from seed, batch_size, data" in (
        main_in_process(*main, "--allow_changes=color").stderr
    )


def test_a_cut_configuration_is_taken_from_the_last_start(tmp_path, caplog):
    place = epath.Path(tmp_path)
    text = stored_without(small_config(), LEVEL)
    append_start(place, 0, text, {})
    (tmp_path / "config.json").write_text(text[:100])
    assert continued(small_config(), place).noise.level_tokens == "visible"
    assert "the configuration of the run's most recent start is used" in caplog.text


def test_a_configuration_that_cannot_be_read_is_not_called_missing(tmp_path):
    with pytest.raises(UserError, match="it has no config.json"):
        read_config(epath.Path(tmp_path))
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="config.json cannot be read: Is a directory"):
        read_config(epath.Path(tmp_path))


def test_a_start_from_the_beginning_begins_a_new_run(tmp_path):
    place = epath.Path(tmp_path)
    for step, seed in ((0, 1), (0, 2), (4, 2), (4, 3)):
        append_start(place, step, json.dumps({"seed": seed}), {})
    assert first_config(place) == {"seed": 2}
    assert ["config" in start for start in read_starts(place)] == [True, True, False, True]
    (tmp_path / "starts.jsonl").write_bytes(b"\xff\n5\n" + (tmp_path / "starts.jsonl").read_bytes())
    assert len(read_starts(place)) == 4


def test_error_of_a_bucket_without_a_system_error_has_a_reason(tmp_path):
    message = "cannot be written: OSError: no such bucket"
    with pytest.raises(UserError, match=message), writing(epath.Path(tmp_path)):
        raise OSError("no such bucket")
