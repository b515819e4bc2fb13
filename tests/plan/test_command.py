"""The planner, as a person runs it."""

import json
import re
import subprocess
import sys

import jax
import pytest

from can_jax.cli.commands import plan as command
from can_jax.cli.commands import plan_table as table
from can_jax.plan.estimate import Memory, Plan, make_plan, recomputed_flops
from tests.helpers.runs import ROOT, main_in_process


def plan(*arguments):
    return main_in_process("can_jax.plan", *arguments)


def figures(*arguments):
    done = plan(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_figures_of_a_plan(recipe):
    found = figures(f"--config={recipe}", "--topology=cpu:8", "--config.mesh.fsdp=4", "--mfu=0.5")
    assert {
        "fits", "bytes_per_device", "flops_per_image", "collectives", "compile_seconds",
        "step_seconds", "images_per_second", "days", "chip_hours", "assumed",
    } <= set(found)  # fmt: skip
    memory = found["bytes_per_device"]
    assert {"parameters", "optimizer", "temporaries", "limit"} <= set(memory)
    assert found["fits"] and found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    # Most of the parameters are split in four; Adam keeps two moments of each.
    assert found["parameters"] < memory["parameters"] < 2 * found["parameters"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    assert memory["spare"] == memory["limit"] - memory["total"]
    kinds = {row["kind"] for row in found["collectives"]}
    assert "all-reduce" in kinds and "all-gather" in kinds
    assert found["images_per_second"] == pytest.approx(16 / found["step_seconds"])
    assert found["images"] == 6 * 16
    # The CPU compiler estimates no times, and says so.
    assert found["estimated_seconds"] is found["parts"] is None
    assert found["assumed"]["mfu"] == 0.5
    again = figures(f"--config={recipe}", "--topology=cpu:8", "--config.mesh.fsdp=1")
    assert again["bytes_per_device"]["parameters"] == 4 * found["parameters"]


MAE = [  # compiles in less time than CAN
    f"--config.{option}"
    for option in (
        "objective.contrastive.weight=0.0", "objective.denoising.weight=0.0",
        "noise.sigma_max=0.0", "augment.views=1",
    )
]  # fmt: skip


def test_time_of_a_step_is_that_of_the_compilers_clock(recipe, tmp_path, monkeypatch):
    plans, text = [], tmp_path / "step.txt"

    def recorded(*arguments):
        plans.append(make_plan(*arguments))
        return plans[-1]

    monkeypatch.setattr(command, "make_plan", recorded)
    options = [f"--config={recipe}", "--topology=v5e:2x2", *MAE, "--top=5"]
    found = figures(*options, f"--dump_hlo={text}")
    seconds = found["estimated_seconds"]
    assert 1e-4 < seconds < 5e-3 and 0 < found["estimated_mfu"] < 0.05
    assert found["expected_seconds"] == found["step_seconds"]
    assert found["expected_seconds"] == seconds / found["calibration"]["ratio"]
    assert found["images_per_second"] == pytest.approx(16 / found["expected_seconds"])
    assert sum(found["parts"].values()) == pytest.approx(seconds)
    # The MAE has neither projector nor noise, and each of its parts takes a share.
    assert {
        "encoder_forward", "encoder_backward", "decoder_forward", "decoder_backward",
        "heads_and_losses_forward", "augmentation", "optimizer", "collectives",
    } <= set(found["parts"])  # fmt: skip
    assert found["parts"].get("other", 0.0) < 0.1 * seconds
    assert found["bases"]["compiler"] > 0.8 * seconds and found["kernels"] > 100
    assert found["assumed"]["mfu"] is None and found["versions"]["libtpu"]
    # Whoever has the text can check the sum: this program has no loops.
    cycles = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text.read_text())]
    assert sum(cycles) / 1.5e9 == pytest.approx(found["bases"]["compiler"])
    dearest = [row["seconds"] for row in found["top"]]
    assert len(dearest) == 5 and dearest == sorted(dearest, reverse=True)
    assert any("can_jax/" in (row["line"] or "") for row in found["top"])

    monkeypatch.setattr(command, "make_plan", lambda *_: plans[0])
    done = plan(*options)
    assert done.returncode == 0, done.stderr
    for part in (
        "Plan: v5e:2x2", "of 15.75 GiB: fits", "Sent in a step", "all-reduce", "images/s",
        "at 1.50 GHz", "measured steps reach", "libtpu", "encoder forward",
        "The most expensive instructions", "can_jax/",
    ):  # fmt: skip
        assert part in done.stdout, part
    assert done.stderr == ""


def test_program_that_did_not_compile_is_said_not_to_be_written(recipe, tmp_path, monkeypatch):
    failed = Plan(
        fits=False, mesh={"data": 4, "fsdp": 1, "tensor": 1}, parameters=1000,
        memory=Memory(4000, 8000, 2**40, 2**40, 2**34), flops_per_image=10,
        recomputed_flops_per_image=0, collectives=[], compile_seconds=1.0, compute_seconds=1.0,
        communication_seconds=0.0, compiled=False,
    )  # fmt: skip
    monkeypatch.setattr(command, "make_plan", lambda *_: failed)
    text = tmp_path / "step.txt"
    options = [f"--config={recipe}", "--topology=v5e:2x2", f"--dump_hlo={text}", "--tries=0"]
    done = plan(*options)
    assert done.returncode == 1 and not text.exists()
    assert f"{text} was not written: compilation ran out of memory\n" in done.stderr, done.stderr


CLASSIFY = ["--config=finetune", "--topology=v5e:2x2", "--tries=0"]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_classifier_is_planned(recipe, monkeypatch, frozen):
    seen = []

    def planned(config, topology, mfu, dump, work):
        seen.append((config, work))
        return Plan(
            fits=False, mesh={"data": 4, "fsdp": 1, "tensor": 1}, parameters=1000,
            memory=Memory(4000, 8000, 2**40, 2**40, 2**34), flops_per_image=work.flops(config),
            recomputed_flops_per_image=recomputed_flops(config, work), collectives=[],
            compile_seconds=1.0, compute_seconds=1.0, communication_seconds=0.0, compiled=False,
        )  # fmt: skip

    monkeypatch.setattr(command, "make_plan", planned)
    settings = ["--config.classify.microbatches=2", "--config.classify.remat=full"]
    settings += [f"--config.classify.freeze_encoder={frozen}"]
    done = plan(*CLASSIFY, *settings, f"--encoder={recipe}", "--classes=7")
    assert done.returncode == 1
    assert "--config.classify.microbatches=2 " not in done.stderr  # None fits: no options to use.
    ((config, work),) = seen
    assert config.batch_size == 128 and config.accumulation.microbatches == 2
    assert config.model.remat == "full" and config.augment.views == 1
    step = work.step(config)
    assert step.classes == 7 and (recomputed_flops(config, work) == 0) == frozen
    assert work.flops(config) == step.flops_per_image
    state = jax.eval_shape(step.fresh)
    assert state.parameters["head"]["head"]["kernel"].shape[1] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config=finetune"], "--encoder=RECIPE is missing: give the encoder that the protocol"),
        (["--config=knn", "--encoder=vit_l"], "config.protocol='knn' has no train step to plan"),
        (["--config=finetune", "--encoder=knn"], "--encoder=knn is an evaluation protocol, for"),
        (["--config=finetune", "--encoder=/no/such"], "--encoder=/no/such: there is no such file"),
        (["--config=vit_l", "--encoder=vit_b"], "--encoder=vit_b has no effect on a pretraining"),
        (["--config=vit_l", "--classes=9"], "--classes=9 has no effect on a pretraining recipe"),
    ],
)
def test_options_of_a_classifier_are_checked(options, message):
    done = plan(*options, "--topology=cpu:1")
    assert done.returncode == 1 and f"error: {message}" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_step_of_a_classifier_is_compiled(recipe):
    few, more = (
        figures(
            "--config=finetune", f"--encoder={recipe}", "--topology=cpu:8",
            f"--config.classify.microbatches={parts}", "--config.model.dtype=float32",
        )["bytes_per_device"]["temporaries"]
        for parts in (1, 8)
    )  # fmt: skip
    assert more < few


@pytest.mark.slow
def test_what_does_not_fit_ends_with_advice(recipe):
    options = [
        f"--config={recipe}", "--topology=l4:2", "--config.batch_size=8192",
        "--config.data.image_size=224", "--config.model.patch_size=16", "--config.model.width=768",
        "--config.model.scan=True", "--config.model.depth=2", "--config.model.heads=12",
    ]  # fmt: skip
    done = subprocess.run(  # this process has eight devices, and the plan is for two
        [sys.executable, "-m", "can_jax.plan", *options, "--json", "--tries=2"], cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["fits"] and found["bytes_per_device"]["spare"] < 0
    assert 2 <= len(found["tried"]) <= 3
    assert [row["fits"] for row in found["tried"]] == sorted(
        (row["fits"] for row in found["tried"]), reverse=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the step does not fit into memory: it needs ")
    assert found["advice"] in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=NAME is missing"),
        (["--config=configs/vit_b.py"], "--topology=NAME is missing"),
        (["--config=configs/vit_b.py", "--topology=v9:2x2"], "unknown device 'v9'"),
        (["--config=configs/vit_b.py", "--topology=cpu:2", "--mfu=2"], "--mfu=2"),
        (
            ["--config=configs/vit_b.py", "--topology=v5e:2x2", "--mfu=0.5"],
            "--mfu=0.5 has no effect on v5e:2x2",
        ),
        (
            ["--config=configs/vit_b.py", "--topology=cpu:2", "--dump_hlo=/nowhere/x.txt"],
            "--dump_hlo=/nowhere/x.txt cannot be written: there is no folder /nowhere",
        ),
        (["--config=configs/vit_b.py", "--topology=cpu:2", "--dump_hlo=/"], "/ is a folder"),
        (
            ["--config=configs/vit_b.py", "--topology=cpu:8", "--top=3"],
            "--top has no effect on cpu:8, since no instruction's time is estimated: leave it out",
        ),
        (
            ["--config=configs/vit_b.py", "--topology=v5e:2x2", "--config.batch_size=4098"],
            "batch_size=4098 is not divisible by 4",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = plan(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["vit_l", "vit_h"])
def test_recipes_carry_a_table_of_slices(name):
    path = ROOT / "configs" / f"{name}.py"
    _, rows = table.rows_of(path.read_text(), str(path))
    slices = {slice_name for slice_name, settings in rows if settings == "-"}
    assert {"v5e:16x16", "h100:8x8"} <= slices


@pytest.mark.slow
def test_row_of_a_table_is_what_the_planner_says():
    """ViT-L/16 at 4096 images on 256 chips: compiled for all of them, in full."""
    path = ROOT / "configs" / "vit_l.py"
    old, rows = table.rows_of(path.read_text(), str(path))
    number = [row[0] for row in rows].index("v5e:16x16")
    found = table.plan(str(path), *rows[number])
    assert found["fits"] and found["batch_size"] == 4096 and found["devices"] == 256
    memory, limit = (found["bytes_per_device"][key] / 2**30 for key in ("total", "limit"))
    line = old.splitlines()[1 + number]
    stated, of = line.split(" of ")
    assert float(stated.split()[-1]) == pytest.approx(memory, rel=0.02)
    assert float(of.split()[0]) == pytest.approx(limit, abs=0.1)
    # Rows stay where they are: what is gathered is the embeddings at most.
    tokens = {99, 197}
    for row in found["collectives"]:
        sizes = {int(size) for size in row["largest"].split("[")[1].rstrip("]").split(",") if size}
        assert row["kind"] == "all-reduce" or not sizes & tokens, row


def test_table_without_a_beginning_is_refused(tmp_path):
    (tmp_path / "x.py").write_text('"""No table."""\n')
    done = main_in_process("can_jax.plan.table", tmp_path / "x.py")
    assert done.returncode == 1 and "has no table" in done.stderr
