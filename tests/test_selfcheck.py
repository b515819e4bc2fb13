"""The self-check, on reference vectors that an independent oracle writes."""

import argparse
import json

import numpy as np
import pytest

from can_jax.errors import UserError
from can_jax.selfcheck import check
from tests.oracle import write_reference
from tests.runs import main_in_process


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    return path, write_reference(path)


def run(*arguments):
    return main_in_process("can_jax.selfcheck", *arguments)


def test_outputs_losses_and_gradients_agree_with_the_oracle(reference):
    path, content = reference
    report = check(str(path), x64=False)
    assert report["passed"]
    wanted = {"latent", "projection", "noise_level_embedding", "prediction", "grad/blocks.1"}
    wanted |= {name for name in content if name.startswith("loss/")}
    assert wanted <= set(report["max_relative_error"])
    assert report["tolerance"]["latent"] == 1e-4
    assert report["tolerance"]["grad/blocks.1"] == 1e-3


@pytest.mark.parametrize("said", [True, False])
def test_variants_of_the_method_are_read_from_the_file(tmp_path, said):
    settings = {"level_tokens": "visible", "normalize_targets": not said}
    content = write_reference(tmp_path / "a.npz", gradients=said, **settings)
    if not said:  # as files were before there was a choice
        meta = json.loads(str(content["meta"]))
        content["meta"] = np.array(json.dumps({k: v for k, v in meta.items() if k not in settings}))
        np.savez(tmp_path / "a.npz", **content)
    assert check(str(tmp_path / "a.npz"), x64=False)["passed"]


def test_double_precision_agrees_to_rounding(reference):
    done = run(f"--reference={reference[0]}", "--x64", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["passed"]
    assert max(report["max_relative_error"].values()) < 1e-12
    assert set(report["tolerance"].values()) == {1e-8}


def test_weights_of_a_public_mae_file_reproduce_the_reference(reference, save_torch, tmp_path):
    path, content = reference
    weights = {k.removeprefix("param/"): v for k, v in content.items() if k.startswith("param/")}
    ours_alone = {k: v for k, v in weights.items() if k.startswith(("noise_pe", "projection"))}
    model = {k: v.astype(np.float32) for k, v in weights.items() if k not in ours_alone}
    model["head.weight"] = np.zeros((10, 3), np.float32)
    tree = {"model": model, "epoch": 800, "args": argparse.Namespace(lr=1e-3)}
    (tmp_path / "mae.pth").write_bytes(save_torch(tree))
    without = content | {f"param/{name}": np.zeros_like(weights[name]) for name in weights}
    without |= {f"param/{name}": array for name, array in ours_alone.items()}
    np.savez(tmp_path / "without.npz", **without)
    assert not check(str(tmp_path / "without.npz"), x64=False)["passed"]
    report = check(str(tmp_path / "without.npz"), False, str(tmp_path / "mae.pth"))
    assert report["passed"]
    taken = {"taken": len(weights) - len(ours_alone), "of": len(weights)}
    assert report["weights"] == taken | {"left_over": ["head.weight"]}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"blocks.0.ls1.gamma": np.ones(8)}, "blocks.0.ls1.gamma has no place"),
        ({"pos_embed": np.ones((1, 11, 8))}, "learned and other positions"),
    ],
)
def test_weights_of_another_encoder_are_refused(reference, tmp_path, extra, message):
    path, content = reference
    weights = {k.removeprefix("param/"): v for k, v in content.items() if k.startswith("param/")}
    np.savez(tmp_path / "a.npz", **weights | extra)
    with pytest.raises(UserError, match=message):
        check(str(path), False, str(tmp_path / "a.npz"))


def test_wrong_reference_fails_with_one_line(reference, tmp_path):
    _, content = reference
    wrong = content | {"loss/denoising": content["loss/denoising"] * 1.01}
    np.savez(tmp_path / "wrong.npz", **wrong)
    done = run(f"--reference={tmp_path / 'wrong.npz'}")
    assert done.returncode == 1
    assert done.stderr == "error: 1 of 24 quantities are off: loss/denoising\n"
    assert "TOO LARGE" in done.stdout


@pytest.mark.parametrize("missing", ["meta", "in/sigma", "param/norm.weight"])
def test_incomplete_reference_is_refused(reference, tmp_path, missing):
    content = {k: v for k, v in reference[1].items() if k != missing}
    np.savez(tmp_path / "part.npz", **content)
    with pytest.raises(UserError, match=missing.removeprefix("param/")):
        check(str(tmp_path / "part.npz"), x64=False)


def test_missing_reference_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check(str(tmp_path / "none.npz"), x64=False)
