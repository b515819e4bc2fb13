import json
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

import can_jax
from can_jax.errors import UserError
from can_jax.export import checking
from can_jax.export.formats import FORMATS
from can_jax.export.model import open_model
from can_jax.weights.reading import read_arrays
from tests.evaluate import samples
from tests.runs import ROOT

CASES = [(name, "encoder") for name in FORMATS] + [("huggingface", "full"), ("safetensors", "full")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return samples.run_directory(tmp_path_factory.mktemp("export"))


def written(run, format, contents, folder):
    folder.mkdir(exist_ok=True)
    model = open_model(str(run))
    file = FORMATS[format](model, contents, epath.Path(folder))
    return model, file


@pytest.mark.parametrize(("format", "contents"), CASES)
def test_features_are_the_same_from_every_format(run, tmp_path, format, contents):
    model, file = written(run, format, contents, tmp_path)
    checked = checking.check(model, format, contents, epath.Path(tmp_path), file)
    assert 0 < max(checked["largest_error"].values()) < 1e-5


@pytest.mark.parametrize(("format", "contents"), [c for c in CASES if c[0] != "stablehlo"])
@pytest.mark.parametrize("damage", ["shuffled", "missing", "scaled"])
def test_wrong_array_is_caught(run, tmp_path, format, contents, damage):
    model, file = written(run, format, contents, tmp_path)
    place = epath.Path(tmp_path / file)
    if file.endswith(".npz"):
        with np.load(place) as content:
            arrays = {name: content[name] for name in content.files}
    else:
        from safetensors.numpy import load

        arrays = load(place.read_bytes())
    names = [n for n in arrays if "mlp" in n.lower() or "intermediate" in n or "expand" in n]
    name = next(
        n for n in names if n.endswith(("kernel", "weight")) and not n.startswith("decoder")
    )
    if damage == "missing":
        del arrays[name]
    elif damage == "scaled":
        arrays[name] = 1.01 * arrays[name]
    else:
        order = np.random.default_rng(0).permutation(arrays[name].shape[-1])
        arrays[name] = np.ascontiguousarray(arrays[name][..., order])
    if file.endswith(".npz"):
        np.savez(place, **arrays)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, place)
    with pytest.raises(UserError) as error:
        checking.check(model, format, contents, epath.Path(tmp_path), file)
    assert "\n" not in str(error.value)


def test_positions_and_class_token_are_there(run, tmp_path):
    model, file = written(run, "timm", "encoder", tmp_path)
    arrays = read_arrays(epath.Path(tmp_path / file))
    assert arrays["pos_embed"].shape == (1, 17, 24) and not arrays["pos_embed"][0, 0].any()
    assert arrays["cls_token"].shape == (1, 1, 24)
    images = checking.images_of(model)
    for name in ("pos_embed", "cls_token"):
        wrong = arrays | {name: arrays[name][..., ::-1]}
        tokens = checking.plain.encode(wrong, checking.pixels_of(model, images), model.heads)
        assert np.abs(tokens - checking.tokens_of(model, images)).max() > 0.01


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "stablehlo"])
def test_export_is_loaded_in_three_lines_without_tensorflow(run, tmp_path, format):
    contents = "full" if format == "safetensors" else "encoder"
    model, _ = written(run, format, contents, tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"model": model.facts()}))
    images = checking.images_of(model)
    wanted = checking.tokens_of(model, images)
    for place in (run, tmp_path):
        encoder = can_jax.load(str(place))
        assert encoder.image_size == (16, 16)
        np.testing.assert_allclose(encoder(images), wanted[:, 1:].mean(1), atol=1e-5)
        np.testing.assert_allclose(encoder(images, "class"), wanted[:, 0], atol=1e-5)
        np.testing.assert_allclose(encoder(images, "all"), wanted.mean(1), atol=1e-5)
    larger = can_jax.load(str(tmp_path), image_size=24)
    assert larger(np.zeros((2, 24, 24, 3), np.uint8), "both").shape == (2, 48)


def test_loading_needs_no_tensorflow(run):
    program = (
        f"import sys, can_jax; can_jax.load({str(run)!r}); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def export(*options):
    return subprocess.run(
        [sys.executable, "-m", "can_jax.export", *options], cwd=ROOT, capture_output=True, text=True
    )


SERVER = """
import sys
import numpy as np
from jax import export

program = export.deserialize(bytearray(open(sys.argv[1] + "/model.stablehlo", "rb").read()))
weights = dict(np.load(sys.argv[1] + "/weights.npz"))
for count in (1, 7):
    images = np.zeros((count, 16, 16, 3), np.uint8)
    assert program.call(weights, images).shape == (count, 48)
assert not {"flax", "can_jax"} & set(sys.modules)
"""


def test_command_and_a_program_that_needs_nothing_of_ours(run, tmp_path):
    options = [f"--checkpoint={run}", "--format=stablehlo", f"--output={tmp_path / 'out'}"]
    done = export(*options)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["model"]["layer_norm_eps"] == 1e-6 and manifest["model"]["step"] == 3
    assert manifest["model"]["mean"] == [0.485, 0.456, 0.406]
    assert max(manifest["checked"]["largest_error"].values()) < 1e-5
    assert manifest["sha256"].keys() == {"model.stablehlo", "weights.npz"}
    (tmp_path / "serve.py").write_text(SERVER)
    served = subprocess.run(
        [sys.executable, "serve.py", "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert served.returncode == 0, served.stderr
    again = export(*options)
    assert again.returncode == 1 and "is there already" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=timm", "--contents=full"], "holds an encoder: --contents=encoder"),
        (["--format=pickle"], "pickle"),
        (["--format=timm", "--checkpoint=/no/such"], "--checkpoint=/no/such does not exist"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(run, tmp_path, options, message):
    done = export(f"--checkpoint={run}", f"--output={tmp_path / 'out'}", *options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())
