import dataclasses
import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from safetensors.numpy import load, save_file

import can_jax
from can_jax.export import numpy_vit as plain
from can_jax.export import readers
from can_jax.export import verify as checking
from can_jax.export.descriptions import huggingface_config
from can_jax.export.formats import FORMATS, ONNX_PACKAGES
from can_jax.export.model import Given, open_model
from can_jax.export.model_card import Statement, card_of, results_of
from can_jax.export.usage import snippets
from can_jax.export.write import public_config
from can_jax.utils.errors import UserError
from can_jax.weights.digest import sha256_of
from can_jax.weights.read_weights import read_weights
from can_jax.weights.reading import read_arrays
from tests.evaluate import samples
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT, main_in_process
from tests.weights.test_variants import varied

ONNX = pytest.mark.skipif(not readers.installed(*ONNX_PACKAGES), reason="needs PyTorch and others")
SLOW = pytest.mark.slow
CASES = [
    *[pytest.param(name, "encoder", marks=ONNX if name == "onnx" else ()) for name in FORMATS],
    ("huggingface", "full"),
    ("safetensors", "full"),
]
FILES = [(name, "encoder") for name in FORMATS if name not in ("onnx", "stablehlo")] + CASES[-2:]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return samples.run_directory(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def opened(run):
    """The run's model, as it is exported."""
    return open_model(str(run))


@pytest.fixture(scope="module")
def model(opened):
    """The run's model, every number of which is of its own, as after training."""
    rng = np.random.default_rng(0)

    def noisy(x):
        return (x + 0.05 * rng.normal(size=x.shape)).astype(np.float32)

    return dataclasses.replace(opened, parameters=jax.tree.map(noisy, opened.parameters))


@pytest.mark.parametrize(("format", "contents"), CASES)
def test_features_are_the_same_from_every_format(model, tmp_path, format, contents):
    folder = epath.Path(tmp_path)
    file = FORMATS[format](model, contents, folder)
    checked = checking.check(model, format, contents, folder, file)
    assert 0 < max(checked["largest_error"].values()) < 1e-5


def with_level_tokens(model, value):
    config = model.config.copy_and_resolve_references()
    config.noise.level_tokens = value
    return dataclasses.replace(model, config=config)


def test_noise_level_of_visible_patches_alone_is_exported(model, tmp_path):
    visible = with_level_tokens(model, "visible")
    file = FORMATS["huggingface"](visible, "full", epath.Path(tmp_path))
    checked = checking.check(visible, "huggingface", "full", epath.Path(tmp_path), file)
    assert 0 < max(checked["largest_error"].values()) < 1e-5


@pytest.mark.parametrize("option", [("gelu", "tanh"), ("epsilon", 1e-5)])
def test_option_of_the_encoder_alone_is_refused_with_its_decoder(opened, option):
    config = opened.config.copy_and_resolve_references()
    config.model.backbone_options = (option,)
    model = dataclasses.replace(opened, config=config)
    assert huggingface_config(model, "encoder")["architectures"] == ["ViTModel"]
    with pytest.raises(UserError, match=f"full for an encoder with the option {option[0]}"):
        huggingface_config(model, "full")


# The options of CLIP, and the formats that cannot express each of them.
CLIP = [
    (("gelu", "quick"), {"big_vision"}),
    (("gelu", "tanh"), set()),
    (("epsilon", 1e-5), {"timm", "big_vision"}),
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("option", "refusing"), CLIP)
def test_option_of_clip_is_exported_or_refused_by_name(model, tmp_path, format, option, refusing):
    if format == "onnx" and not readers.installed(*ONNX_PACKAGES):
        pytest.skip("needs PyTorch and others")
    config = model.config.copy_and_resolve_references()
    config.model.backbone_options = (option,)
    clip, folder = dataclasses.replace(model, config=config), epath.Path(tmp_path)
    if format in refusing:
        with pytest.raises(UserError, match=f"--format={format} cannot express {option[0]}="):
            FORMATS[format](clip, "encoder", folder)
        return
    file = FORMATS[format](clip, "encoder", folder)
    checked = checking.check(clip, format, "encoder", folder, file)
    assert 0 < max(checked["largest_error"].values()) < 1e-5
    sample = readers.sample_of(clip)
    names = {"gelu": "gelu", "epsilon": "eps"}
    wanted = plain.encode(
        clip.encoder(), sample.pixels, clip.heads, **{names[option[0]]: option[1]}
    )
    found = readers.reference(clip, sample, "encoder")["tokens"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def read(place):
    if place.suffix == ".npz":
        with np.load(place) as content:
            return {name: content[name] for name in content.files}
    return load(place.read_bytes())


def write(place, arrays):
    if place.suffix == ".npz":
        np.savez(place, **arrays)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, place)


def damaged(arrays, name, damage):
    rest = {other: array for other, array in arrays.items() if other != name}
    if damage == "missing":
        return rest
    if damage == "misnamed":
        return rest | {f"{name}_": arrays[name]}
    if damage == "scaled":
        return rest | {name: 1.5 * arrays[name]}
    flat = arrays[name].reshape(-1)
    return rest | {name: np.roll(flat, 1).reshape(arrays[name].shape)}


@pytest.mark.parametrize(("format", "contents"), FILES)
@pytest.mark.parametrize(
    "damage",
    ["shuffled", "missing", *(pytest.param(name, marks=SLOW) for name in ("misnamed", "scaled"))],
)
def test_any_wrong_array_is_caught(model, tmp_path, monkeypatch, format, contents, damage):
    folder = epath.Path(tmp_path)
    place = tmp_path / FORMATS[format](model, contents, folder)
    wanted = readers.reference(model, readers.sample_of(model), contents)
    monkeypatch.setattr(readers, "reference", lambda *_: dict(wanted))
    whole = read(place)
    assert len(whole) >= 30
    for name in whole:
        wrong = damaged(whole, name, damage)
        same = name in wrong and np.array_equal(wrong[name], whole[name])  # statistics are 0 or 1
        if same or name.endswith(("key.bias", "key/bias")):
            continue  # a bias of the keys shifts all logits alike
        write(place, wrong)
        with pytest.raises(UserError) as error:
            checking.check(model, format, contents, folder, place.name)
        assert "\n" not in str(error.value), name


def test_positions_and_class_token_are_there(model, tmp_path):
    file = FORMATS["timm"](model, "encoder", epath.Path(tmp_path))
    arrays = read_arrays(epath.Path(tmp_path / file))
    assert arrays["pos_embed"].shape == (1, 17, 24) and not arrays["pos_embed"][0, 0].any()
    assert arrays["cls_token"].shape == (1, 1, 24)
    sample = readers.sample_of(model)
    wanted = readers.reference(model, sample, "encoder")["tokens"]
    for name in ("pos_embed", "cls_token"):
        wrong = arrays | {name: arrays[name][..., ::-1]}
        assert np.abs(plain.encode(wrong, sample.pixels, model.heads) - wanted).max() > 0.01


@pytest.fixture(scope="module")
def tokens(opened):
    """Tokens of the sample, by the run's own network."""
    return readers.reference(opened, readers.sample_of(opened), "encoder")["tokens"]


def assert_gives(encoder, opened, tokens):
    images = readers.sample_of(opened).images
    assert encoder.image_size == (16, 16)
    np.testing.assert_allclose(encoder(images), tokens[:, 1:].mean(1), atol=1e-5)
    np.testing.assert_allclose(encoder(images, "class"), tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(encoder(images, "all"), tokens.mean(1), atol=1e-5)


def test_models_of_other_libraries_are_built_after_tensorflow_is_imported():
    """Importing Triton, as they do, would end the process if TensorFlow's library came first."""
    pytest.importorskip("timm")
    program = (
        "from can_jax.utils.tensorflow import tensorflow\n"
        "tensorflow()\n"
        "import timm\n"
        "timm.create_model('vit_tiny_patch16_224')\n"
        "from transformers import ViTModel\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_is_loaded_in_three_lines(run, opened, tokens):
    encoder = can_jax.load(str(run))
    assert_gives(encoder, opened, tokens)
    assert encoder.step == 3 and "step 3: ViT of width 24" in repr(encoder)


def test_step_of_a_run_is_chosen(run, opened):
    at = f"{run}/checkpoints/3"
    assert open_model(at).step == opened.step == 3 and open_model(at).source == str(run)
    assert can_jax.load(at).sha256 == can_jax.load(run, step=3).sha256
    for function, place in (
        (can_jax.load, f"{run}/checkpoints/7"),
        (open_model, f"{run}/checkpoints/7"),
    ):
        with pytest.raises(UserError, match="no checkpoint of step 7; there are 3$"):
            function(place)


@pytest.mark.parametrize("format", [name for name, contents in FILES if contents == "encoder"])
def test_export_is_loaded_in_three_lines(opened, tokens, tmp_path, format):
    contents, facts = "full" if format == "safetensors" else "encoder", opened.facts()
    file = FORMATS[format](opened, contents, epath.Path(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps({"model": facts}))
    encoder = can_jax.load(str(tmp_path))
    assert_gives(encoder, opened, tokens)
    assert read_weights(epath.Path(tmp_path / file)).facts == facts
    (tmp_path / "manifest.json").unlink()
    if file.endswith(".npz"):
        with pytest.warns(UserWarning, match="does not state mean and std"):
            alone = can_jax.load(tmp_path / file)
        assert alone.heads == 3
    else:
        alone = read_weights(epath.Path(tmp_path / file)).facts
        assert alone == {name: fact for name, fact in facts.items() if name != "source"}
        (tmp_path / "manifest.json").write_text("{}")  # of something else
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            alone = can_jax.load(tmp_path / file)
    images = readers.sample_of(opened).images
    # A big_vision file by itself is one of big_vision, whose GELU is that by tanh.
    tolerance = 2e-3 if file.endswith(".npz") else 0
    np.testing.assert_allclose(alone(images), encoder(images), rtol=0, atol=tolerance)


def test_export_is_loaded_at_another_size(opened, tmp_path):
    FORMATS["timm"](opened, "encoder", epath.Path(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps({"model": opened.facts()}))
    larger = can_jax.load(str(tmp_path), image_size=24)
    assert larger(np.zeros((2, 24, 24, 3), np.uint8), "both").shape == (2, 48)


def test_reconstruction_targets_are_stated_as_they_were(opened):
    config = opened.config.copy_and_resolve_references()
    config.objective.reconstruction.normalize = False
    plain_targets = dataclasses.replace(opened, config=config).facts()["patch_targets"]
    assert opened.facts()["patch_targets"].startswith("each patch normalized")
    assert plain_targets == "pixels of the normalized image"


def test_what_holds_no_weights_is_not_exported(run, tmp_path):
    (tmp_path / "mae.npz").write_bytes(b"")
    with pytest.raises(UserError, match="is neither a run directory, nor an export"):
        open_model(str(tmp_path))
    with pytest.raises(UserError, match=r"mae\.npz cannot be read"):
        open_model(str(tmp_path / "mae.npz"))
    with pytest.raises(UserError, match=r"is a run: leave out --heads.* config\.json states these"):
        open_model(str(run), Given(heads=3))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Weights of another library with options that MAE's encoder has not."""
    place = tmp_path_factory.mktemp("imported") / "a.safetensors"
    arrays = {k: np.ascontiguousarray(v) for k, v in varied().items() if "pre" not in k}
    save_file(arrays, place)
    return place, open_model(str(place), Given(heads=3, mean=0.5, std=0.25))


@pytest.mark.parametrize("format", ["timm", "safetensors", "stablehlo"])
def test_weights_of_another_library_are_converted(imported, tmp_path, format):
    place, model = imported
    folder = epath.Path(tmp_path)
    file = FORMATS[format](model, "encoder", folder)
    checked = checking.check(model, format, "encoder", folder, file)
    assert 0 < max(checked["largest_error"].values()) < 1e-5
    if format != "stablehlo":
        images = readers.sample_of(model).images
        tokens = readers.reference(model, readers.sample_of(model), "encoder")["tokens"]
        found = can_jax.load(tmp_path / file)(images, "tokens")
        np.testing.assert_allclose(found, tokens, atol=1e-5)


def test_an_export_of_weights_without_a_step_can_be_loaded(imported, tmp_path):
    place, _ = imported
    can_jax.export_encoder(place, "safetensors", tmp_path / "out", heads=3, mean=0.5, std=0.25)
    assert can_jax.load(tmp_path / "out").step is None


@pytest.mark.parametrize("format", ["huggingface", "big_vision"])
def test_format_without_an_option_is_refused(imported, tmp_path, format):
    with pytest.raises(UserError, match=f"--format={format} cannot express (qk_norm|layer_scale)"):
        FORMATS[format](imported[1], "encoder", epath.Path(tmp_path))


def test_dinov2_is_converted_to_its_own_classes(tmp_path):
    arrays = {k: v for k, v in varied().items() if "pre" not in k and "_norm" not in k}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "a.safetensors")
    model = open_model(str(tmp_path / "a.safetensors"), Given(heads=3, mean=0.5, std=0.25))
    folder = epath.Path(tmp_path / "out")
    folder.mkdir()
    file = FORMATS["huggingface"](model, "encoder", folder)
    checked = checking.check(model, "huggingface", "encoder", folder, file)
    assert 0 < max(checked["largest_error"].values()) < 1e-5
    assert json.loads((folder / "config.json").read_text())["num_register_tokens"] == 4


TIMM = pytest.mark.skipif(not readers.installed("torch", "timm"), reason="needs PyTorch and timm")


@pytest.mark.parametrize(
    "format",
    [
        pytest.param("timm", marks=TIMM),
        pytest.param("huggingface", marks=ONNX),
    ],
)
def test_preprocessing_travels(opened, tmp_path, format):
    """Through the library's own pipeline every image has the features of an evaluation."""
    import torch

    folder = epath.Path(tmp_path)
    file = FORMATS[format](opened, "encoder", folder)
    checked = checking.check(opened, format, "encoder", folder, file)
    assert all(levels < 1 for levels in checked["preprocessing"].values())
    (tmp_path / "manifest.json").write_text(json.dumps({"model": opened.facts()}))
    encoder = can_jax.load(tmp_path)
    photos = [Image.fromarray(photo) for photo in checking.photographs(3, count=60)]
    ours = encoder([encoder.preprocess(photo) for photo in photos])
    with torch.no_grad():
        if format == "timm":
            import timm

            network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
            settings = timm.data.resolve_model_data_config(network)
            transform = timm.data.create_transform(**settings)
            theirs = network(torch.stack([transform(photo) for photo in photos])).numpy()
        else:
            from transformers import AutoModel

            processor = checking.image_processor(folder)
            network = AutoModel.from_pretrained(str(tmp_path)).eval()
            outputs = network(**processor(photos, return_tensors="pt"))
            theirs = outputs.last_hidden_state[:, 1:].mean(dim=1).numpy()
            class_token = encoder([encoder.preprocess(photo) for photo in photos], "class")
            np.testing.assert_allclose(outputs.pooler_output.numpy(), class_token, atol=0.1)
    ours, theirs = (x - x.mean(axis=0) for x in (ours, theirs))
    ours, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (ours, theirs))
    cosine = ours @ theirs.T
    assert np.diag(cosine).min() > 0.999 and (cosine.argmax(axis=1) == np.arange(60)).all()


def test_loading_needs_no_tensorflow(run):
    program = (
        f"import sys, can_jax; can_jax.load({str(run)!r}); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(("channels", "kept"), [(3, {"timm", "can_jax"}), (4, {"can_jax"})])
def test_libraries_resize_photographs_only(opened, channels, kept, tmp_path):
    """An alpha channel would scale the other channels; five channels are no image of Pillow."""
    config = opened.config.copy_and_resolve_references()
    config.data.channels = channels
    model = dataclasses.replace(opened, config=config)
    assert snippets(model, "timm", "encoder").keys() == kept
    assert not snippets(model, "timm", "classifier") or channels == 3
    if channels == 4:
        assert checking.preprocessing_differences(model, "timm", epath.Path(tmp_path)) == {}


def test_card_has_the_results_of_these_weights_and_of_no_others(run, opened, tmp_path):
    model = opened
    results = {
        "metrics": {"knn_20": 61.25},
        "protocol": {"protocol": "knn"},
        "data": {"source": "folder"},
        "checkpoint": {"sha256": sha256_of({"encoder": model.parameters["encoder"]})}
        | {"path": str(run), "step": 3, "image_size": [64, 48]},
    }
    for name, sha in (("own", results["checkpoint"]["sha256"]), ("other", "0")):
        (tmp_path / name).mkdir()
        content = results | {"checkpoint": results["checkpoint"] | {"sha256": sha}}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    found = results_of(model, [str(tmp_path / "own")])
    manifest = {"usage": {"can_jax": "run"}, "checked": {"images": 3, "largest_error": {"a": 1e-7}}}
    text = card_of(model, "big_vision", "encoder", manifest, found)
    assert str(run) not in text and "License: not stated" in text and "\nlicense:" not in text
    stated = card_of(
        model, "big_vision", "encoder", manifest, found, Statement("mit", "a million shapes")
    )
    assert "\nlicense: mit\n" in stated and "| data | a million shapes |" in stated
    assert "| knn | knn_20 | 61.25 | folder, 64 x 48 pixels |" in text and "| a | 1.0e-07 |" in text
    assert "ViT (24 wide, 2 blocks, 3 heads), patches of 4," in text and 'can_jax.load(".")' in text
    with pytest.raises(UserError, match=r"other has results of .*, step 3, but other weights"):
        results_of(model, [str(tmp_path / "other")])
    with pytest.raises(UserError, match=r"holds no results\.json"):
        results_of(model, [str(tmp_path)])


def test_card_names_can_only_for_its_three_objectives(opened):
    manifest = {"usage": {"can_jax": "run"}, "checked": {"images": 3, "largest_error": {"a": 1e-7}}}
    text = card_of(opened, "big_vision", "encoder", manifest, [])
    assert ", pretrained with CAN\n" in text and "- self-supervised\n- can\n" in text
    config = opened.config.copy_and_resolve_references()
    with config.unlocked():
        config.objective.contrastive.weight = config.objective.denoising.weight = 0.0
    mae = dataclasses.replace(opened, config=config)
    text = card_of(mae, "big_vision", "encoder", manifest, [])
    assert "- self-supervised\n---" in text and "CAN" not in text
    assert "pretrained with the objective reconstruction by can_jax" in text


@pytest.mark.parametrize(
    ("level_tokens", "arrays"),
    [("all", {"decoder_pos_embed"}), ("visible", {"decoder_embed.bias", "decoder_pos_embed"})],
)
def test_decoder_is_told_that_there_is_no_noise(model, level_tokens, arrays):
    model = with_level_tokens(model, level_tokens)
    with_level = model.autoencoder()
    without = {name: tree for name, tree in model.parameters.items() if name != "noise_level"}
    plain_decoder = dataclasses.replace(model, parameters=without).autoencoder()
    moved = {n for n, a in with_level.items() if not np.array_equal(a, plain_decoder[n])}
    assert moved == arrays


def export(*options):
    return main_in_process("can_jax.export", *options)


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


def test_published_configuration_has_no_paths_of_this_machine():
    config = small_config()
    with config.ignore_type():
        config.data.update(path="/d/a", index="/d/b", disk_cache="/d/c", labels="/d/d")
        config.data.mixture = ({"path": "/d/e", "disk_cache": "/d/f", "weight": 1.0},)
    assert "/d/" not in json.dumps(public_config(config))


def test_command_and_a_program_that_needs_nothing_of_ours(run, tmp_path):
    options = [f"--checkpoint={run}", "--format=stablehlo", f"--output={tmp_path / 'out'}"]
    done = export(*options)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["model"]["layer_norm_eps"] == 1e-6 and manifest["model"]["step"] == 3
    assert manifest["model"]["mean"] == [0.485, 0.456, 0.406]
    assert str(run) not in json.dumps(manifest) and manifest["config"]["data"]["path"] is None
    assert max(manifest["checked"]["largest_error"].values()) < 1e-5
    assert manifest["usage"] == {"jax": "run"} and manifest["config"]["model"]["width"] == 24
    assert "program.call(weights" in (tmp_path / "out/README.md").read_text()
    assert manifest["sha256"].keys() == {"model.stablehlo", "weights.npz"}
    (tmp_path / "serve.py").write_text(SERVER)
    served = subprocess.run(
        [sys.executable, "serve.py", "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert served.returncode == 0, served.stderr
    again = export(*options)
    assert again.returncode == 1 and "already exists" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--format=timm", "--contents=full"],
            "does not support --contents=full: set --contents=encoder or classifier",
        ),
        (["--format=pickle"], "pickle"),
        (["--format=timm", "--checkpoint=/no/such"], "--checkpoint=/no/such does not exist"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(run, tmp_path, options, message):
    done = export(f"--checkpoint={run}", f"--output={tmp_path / 'out'}", *options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_transformers_and_the_environment_stay_as_the_program_has_set_them(monkeypatch):
    calls = []

    def from_pretrained(*_, **options):
        calls.append(options)
        return MagicMock(), {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    logging = MagicMock()
    logging.get_verbosity.return_value = 10
    logging.is_progress_bar_enabled.side_effect = [True, False]
    utils, kind = SimpleNamespace(logging=logging), SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(utils=utils, ViTModel=kind))
    before = dict(os.environ)
    for _ in range(2):
        readers.from_pretrained("ViTModel", epath.Path("export"))
    assert dict(os.environ) == before and calls[0]["local_files_only"]
    names = [name for name, *_ in logging.method_calls if not name.startswith(("get", "is"))]
    quiet = ["set_verbosity_error", "disable_progress_bar", "set_verbosity"]
    assert names == [*quiet, "enable_progress_bar", *quiet]
    logging.set_verbosity.assert_called_with(10)
