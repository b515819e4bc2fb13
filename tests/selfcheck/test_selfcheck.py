"""The self-check, on reference vectors that an independent oracle writes."""

import argparse
import json
import math

import numpy as np
import pytest

from can_jax.models.encoder import positions_with_class
from can_jax.selfcheck.compare import SHIPPED, check
from can_jax.utils.errors import UserError
from tests.helpers.oracle import write_reference
from tests.helpers.runs import main_in_process


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    return path, write_reference(path)


def run(*arguments):
    return main_in_process("can_jax.selfcheck", *arguments)


def test_file_of_the_package_is_the_oracle_s(reference):
    with np.load(SHIPPED) as shipped:
        assert set(shipped) == set(reference[1])
        for name, values in reference[1].items():
            if name == "meta":
                assert str(shipped[name]) == str(values)
            else:
                np.testing.assert_allclose(shipped[name], values, rtol=1e-9, atol=1e-12)


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
    content = write_reference(tmp_path / "a.npz", gradients=False, depth=1, **settings)
    if not said:  # as files were before there was a choice
        meta = json.loads(str(content["meta"]))
        content["meta"] = np.array(json.dumps({k: v for k, v in meta.items() if k not in settings}))
        np.savez(tmp_path / "a.npz", **content)
    assert check(str(tmp_path / "a.npz"), x64=False)["passed"]


FORMS = (
    {"noise_target": "normalized", "noise_output": True, "patch_embed": "whitened"},
    {"noise_target": "unit", "noise_output": True, "patch_embed": "dct"},
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["patch_embed"])
def test_forms_of_the_noise_branch_agree_in_values_and_gradients(tmp_path, form):
    path = tmp_path / "a.npz"
    write_reference(path, depth=1, **form)
    single = check(str(path), x64=False)["max_relative_error"]
    gradients = {name for name in single if name.startswith("grad/")}
    assert {"grad/patch_embed", "grad/decoder_noise_pred"} <= gradients
    assert all(error < (1e-4 if name in gradients else 1e-5) for name, error in single.items())
    double = json.loads(run(f"--reference={path}", "--x64", "--json").stdout)
    assert max(double["max_relative_error"].values()) < 1e-10


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
    without = content | {f"param/{name}": np.zeros_like(weights[name]) for name in weights}
    without |= {f"param/{name}": array for name, array in ours_alone.items()}
    # Positions are fixed: those of the file are compared, and are no weights.
    model["pos_embed"] = without["param/pos_embed"] = positions_with_class((2, 5), 8)[None]
    (tmp_path / "mae.pth").write_bytes(save_torch(tree))
    np.savez(tmp_path / "without.npz", **without)
    assert not check(str(tmp_path / "without.npz"), x64=False)["passed"]
    report = check(str(tmp_path / "without.npz"), False, str(tmp_path / "mae.pth"))
    assert report["passed"]
    taken = {"taken": len(weights) - len(ours_alone), "of": len(weights)}
    assert report["weights"] == taken | {"left_over": ["head.weight", "pos_embed"]}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"blocks.0.ls1.gamma": np.ones(8)}, "blocks.0.ls1.gamma has no counterpart"),
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
    assert (
        done.stderr
        == "error: the errors of 1 of 24 quantities exceed their tolerances: loss/denoising\n"
    )
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


def altered(content, **changes):
    """The arrays with keys of `meta` changed; None removes one."""
    meta = json.loads(str(content["meta"])) | changes
    kept = {name: value for name, value in meta.items() if value is not None}
    return content | {"meta": np.array(json.dumps(kept))}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("width", "48", "a whole number"), ("width", 48.5, "a whole number"),
        ("depth", True, "a whole number"), ("images", 10**400, "a whole number"),
        ("mask_ratio", "0.5", "a number"), ("temperature", False, "a number"),
        ("temperature", math.nan, "a number"), ("sigma_max", [0.05], "a number"),
        ("normalize_targets", "false", "True or False"), ("normalize_targets", 1, "True or False"),
        ("level_tokens", "hidden", "one of all, visible"), ("level_tokens", True, "one of"),
        ("weights", [0.5, 0.5], "a tuple of 3"), ("weights", {"a": 1}, "a tuple of 3"),
        ("weights", [0.1, "0.2", 0.7], "a tuple of 3"), ("weights", [0.1, -1, 0.7], "a tuple of 3"),
        ("views", {}, "a whole number"), ("image_size", "big", "an int"),
    ],
)  # fmt: skip
def test_settings_of_a_file_are_refused_by_file_and_key(reference, tmp_path, name, value, wanted):
    path = tmp_path / "odd.npz"
    np.savez(path, **altered(reference[1], **{name: value}))
    with pytest.raises(UserError) as error:
        check(str(path), x64=False)
    message = str(error.value)
    assert message.startswith(f"--reference={path}: 'meta' has {name}=") and "\n" not in message
    assert f"give {wanted}" in message


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("[1, 2]", r"'meta' is \[1, 2\]: give a JSON object"),
        ('"text"', "'meta' is 'text': give a JSON object"),
        ("{'width': 3}", "'meta' is not JSON"), ("", "'meta' is not JSON"), (3.0, "one string"),
        (["{}", "{}"], "give one string"), ("{}", "'meta' has no key 'images'"),
        (b"{}", "'meta' has no key 'images'"),
    ],
)  # fmt: skip
def test_settings_that_are_no_json_object(reference, tmp_path, meta, message):
    np.savez(tmp_path / "odd.npz", **reference[1] | {"meta": np.array(meta)})
    with pytest.raises(UserError, match=f"^--reference={tmp_path / 'odd.npz'}.*{message}"):
        check(str(tmp_path / "odd.npz"), x64=False)


@pytest.mark.parametrize("name", ["width", "weights", "sigma_scale"])
def test_settings_that_are_missing(reference, tmp_path, name):
    np.savez(tmp_path / "odd.npz", **altered(reference[1], **{name: None}))
    with pytest.raises(UserError, match=f"odd.npz: 'meta' has no key '{name}': give a "):
        check(str(tmp_path / "odd.npz"), x64=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "'meta' has heads=5|config.model.heads=5 does not divide"),
        ({"patch_size": 3}, "'meta' has patch_size=3, which does not divide the size"),
        ({"mask_ratio": 0.999}, "'meta' has mask_ratio=0.999 masks all"),
        ({"images": 1}, "array 'in/views' has shape|array 'out/"),
        ({"depth": 1}, r"param/blocks\.\d.* has no counterpart in the network"),
        ({"depth": 9}, r"the weights have no blocks\.\d"),
    ],
)
def test_settings_of_a_file_that_do_not_fit(reference, tmp_path, changes, message):
    np.savez(tmp_path / "odd.npz", **altered(reference[1], **changes))
    with pytest.raises(UserError, match=f"^--reference={tmp_path / 'odd.npz'}.*({message})"):
        check(str(tmp_path / "odd.npz"), x64=False)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("in/views", lambda a: a[0], "has shape .*height, width, channels"),
        ("in/views", lambda a: a.astype(str), "has the type <U.*give numbers"),
        ("in/sigma", lambda a: a[:-1], "has shape"),
        ("in/sigma", lambda a: a * math.inf, "not finite"),
        ("in/unit_noise", lambda a: a[:, :-1], "has shape"),
        ("in/shuffle", lambda a: a + 1, "not a permutation of the integers"),
        ("in/shuffle", lambda a: a + 0.5, "not a permutation of the integers"),
        ("out/latent", lambda a: a[0, 0, 0], "has shape"),
        ("out/latent", lambda a: a[:-1], "has shape"),
        ("out/pooled", lambda a: a * math.nan, "not finite"),
        ("loss/total", lambda a: a.astype(complex), "has the type complex128"),
        ("param/norm.weight", lambda a: a * math.nan, "not finite"),
        ("param/projection_head.0.weight", lambda a: a.ravel(), "has shape"),
    ],
)
def test_arrays_of_a_file_are_refused_by_file_and_name(reference, tmp_path, name, change, message):
    path = tmp_path / "odd.npz"
    np.savez(path, **reference[1] | {name: change(reference[1][name])})
    with pytest.raises(UserError, match=f"^--reference={path}: array '{name}' .*{message}"):
        check(str(path), x64=False)


def test_array_of_objects_is_refused_by_file_and_name(reference, tmp_path):
    path = tmp_path / "odd.npz"
    np.savez(path, **reference[1] | {"param/cls_token": np.array(object())})
    message = f"^--reference={path} cannot be read: array 'param/cls_token': arrays of Python obj"
    with pytest.raises(UserError, match=message):
        check(str(path), x64=False)


def test_a_file_with_nothing_to_compare_does_not_pass(reference, tmp_path):
    inputs = {k: v for k, v in reference[1].items() if not k.startswith(("out", "loss", "grad"))}
    np.savez(tmp_path / "inputs.npz", **inputs)
    with pytest.raises(UserError, match="inputs.npz has no array to compare"):
        check(str(tmp_path / "inputs.npz"), x64=False)


def test_files_of_other_kinds_are_refused(reference, tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "empty.npz").touch()
    whole = reference[0].read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("{}")
    for name in ("a.npy", "empty.npz", "cut.npz", "text.npz"):
        with pytest.raises(UserError, match=f"^--reference={tmp_path / name} (is a|cannot be)"):
            check(str(tmp_path / name), x64=False)
