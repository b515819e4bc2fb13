import json

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from can_jax.utils.errors import UserError
from can_jax.weights.layouts import to_big_vision, to_huggingface
from can_jax.weights.read_weights import IMAGENET, complete, read_weights
from tests.weights.vits import shards, vit

HF = {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 3, "layer_norm_eps": 1e-6}
HALF = [0.5, 0.4, 0.6]
PROCESSOR = {"image_mean": HALF, "image_std": HALF, "do_rescale": True, "rescale_factor": 1 / 255}
TIMM = {
    "architecture": "vit_tiny_patch16_224", "num_features": 24,
    "model_args": {"embed_dim": 24, "num_heads": 3, "img_size": 16},
    "pretrained_cfg": {"mean": HALF, "std": HALF, "input_size": [3, 16, 16]},
}  # fmt: skip


def folder(place, arrays, config=None, processor=None, name="model.safetensors"):
    place.mkdir(exist_ok=True)
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, place / name)
    for file, content in (("config", config), ("preprocessor_config", processor)):
        if content is not None:
            (place / f"{file}.json").write_text(json.dumps(content))
    return epath.Path(place)


def opened(place, **given):
    return complete(read_weights(epath.Path(place)), **given)


def refused(place, message, **given):
    with pytest.raises(UserError, match=message) as error:
        opened(place, **given)
    assert "\n" not in str(error.value) and str(place) in str(error.value)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("grid", [(4, 4), (2, 6)])
def test_folder_of_hugging_face_states_heads_and_normalization(tmp_path, bare, grid):
    arrays = to_huggingface(vit(grid=grid), with_decoder=False)
    arrays["pooler.dense.weight"] = np.zeros((24, 24), np.float32)
    place = folder(tmp_path / "a", arrays, HF, PROCESSOR)
    found = opened(place / "model.safetensors" if bare else place)
    wanted = {"heads": 3, "mean": HALF, "std": HALF, "image_size": [4 * side for side in grid]}
    assert found.facts.items() >= (wanted | {"width": 24, "depth": 2, "patch_size": 4}).items()
    assert not found.warnings


def test_folder_of_timm_states_them_too(tmp_path):
    found = opened(folder(tmp_path / "a", vit(), TIMM))
    assert found.facts.items() >= {"heads": 3, "mean": HALF, "std": HALF}.items()
    assert not found.warnings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HF | {"model_type": "clip"}, "type 'clip' is not supported"),
        ({"architectures": ["CLIPModel"]}, "'CLIPModel' is not supported"),
        (HF | {"hidden_act": "swish"}, "hidden_act='swish' is not supported"),
        (
            HF | {"layer_norm_eps": 0.1},
            "config.json: layer_norm_eps=0.1: give a number above 0, at most 0.01",
        ),
        (HF | {"hidden_size": 32}, "config.json: hidden_size=32, but the arrays have 24"),
        (
            HF | {"num_hidden_layers": 12},
            "config.json: num_hidden_layers=12, but the arrays have 2",
        ),
        (HF | {"num_attention_heads": 5}, "num_attention_heads=5 is not a number of heads for"),
        (HF | {"patch_size": [4, 8]}, "patches must be square"),
        (HF | {"patch_size": 16}, "config.json: patch_size=16, but the arrays have 4"),
        (HF | {"intermediate_size": 64}, "intermediate_size=64, but the arrays have 96"),
        (HF | {"num_channels": 1}, "num_channels=1, but the arrays have 3"),
        (HF | {"num_channels": "3"}, "num_channels='3', but the arrays have 3"),
        (HF | {"image_size": 224}, r"image_size=\[224, 224\], but the arrays hold .* for 16x16"),
        (HF | {"image_size": [8, 32]}, r"image_size=\[8, 32\], but"),
        (HF | {"qkv_bias": False}, "qkv_bias=False, but the arrays have blocks.0.attn.qkv.bias"),
        (HF | {"hidden_act": None}, "hidden_act=None is not supported"),
        (HF | {"layer_norm_eps": "1e-6"}, "layer_norm_eps='1e-6': give a number"),
        (HF | {"architectures": 3, "model_type": None}, "malformed"),
        (TIMM | {"architecture": "swin_tiny"}, "'swin_tiny' is not supported"),
        (TIMM | {"architecture": "vit_small_patch16_dinov3"}, "is not supported"),
        (TIMM | {"model_args": {"class_token": False}}, "class_token=False is not supported"),
        (
            TIMM | {"model_args": {"num_heads": 3, "pre_norm": True}},
            "pre_norm=True, but the arrays",
        ),
        (TIMM | {"model_args": {"act_layer": "silu"}}, "act_layer='silu' is not"),
        (TIMM | {"model_args": {"img_size": 32}}, r"img_size=\[32, 32\], but the arrays hold"),
        (TIMM | {"model_args": {"embed_dim": 32}}, "model_args.embed_dim=32, but the arrays"),
        (TIMM | {"num_features": 32, "model_args": {}}, "config.json: num_features=32, but"),
        (TIMM | {"pretrained_cfg": {"input_size": [1, 16, 16]}}, "input_size=1, but the arrays"),
        ({"a": 1}, "neither the configuration of a run nor that of a model"),
        ([1], "holds a list, not a dict"),
    ],
)
def test_configuration_of_another_model_is_refused(tmp_path, config, message):
    refused(folder(tmp_path / "a", vit(), config), message)


@pytest.mark.parametrize(
    "name",
    ["flexivit_small", "eva_large_patch14_196.in22k", "vit_base_patch16_plus_240",
     "vit_base_patch14_reg1_tipsv2"],
)  # fmt: skip
def test_architectures_of_timm_with_its_epsilon(tmp_path, name):
    found = opened(folder(tmp_path / "a", vit(), TIMM | {"architecture": name}))
    assert found.facts["options"] == {} and found.facts["layer_norm_eps"] == 1e-6


@pytest.mark.parametrize("kind", ["beit", "deit", "dinov3_vit"])
def test_model_of_another_type_is_refused_before_its_arrays_are_read(tmp_path, kind):
    place = folder(tmp_path / "a", {}, HF | {"model_type": kind})
    (place / "model.safetensors").write_bytes(b"")
    refused(place, f"a model of type '{kind}' is not supported; supported are vit, vit_mae")


def test_folder_that_is_nothing_or_incomplete_is_refused(tmp_path):
    place = folder(tmp_path / "a", vit())
    refused(
        place,
        r"neither a run directory, nor an export .*: config\.json is missing; use the path",
    )
    (place / "model.safetensors").unlink()
    refused(place, r"config\.json is missing$")
    (place / "config.json").write_text(json.dumps(HF))
    refused(place, "is incomplete: it holds none of model.safetensors")
    (place / "config.json").write_text('{"model_type": ')
    refused(place, "config.json cannot be read")


@pytest.mark.parametrize("manifest", ["[]", '{"model": "x"}', '{"model": {"a": 1}}'])
def test_manifest_of_something_else_is_left_alone(tmp_path, manifest):
    place = folder(tmp_path / "a", vit(), HF, PROCESSOR)
    (place / "manifest.json").write_text(manifest)
    assert opened(place).facts["heads"] == 3


def test_metadata_that_is_malformed_is_refused(tmp_path):
    for facts in ("nonsense", "[]", "3"):
        save_file(vit(), tmp_path / "a.safetensors", metadata={"can_jax": facts})
        refused(tmp_path / "a.safetensors", "metadata can_jax is malformed")
    manifest = {"model": {"width": 24, "heads": "3", "mean": [0.5]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    save_file(vit(), tmp_path / "model.safetensors")
    refused(
        tmp_path / "model.safetensors",
        "manifest.json: model.heads='3' is not a number of heads for the width 24",
    )


@pytest.mark.parametrize("heads", [0, -3, True, "3", 3.5, 5])
def test_heads_that_are_none_are_refused(tmp_path, heads):
    np.savez(tmp_path / "a.npz", **vit())
    refused(tmp_path / "a.npz", "is not a number of heads for the width 24", heads=heads)


def test_shards_of_a_folder_are_read_with_its_configuration(tmp_path):
    arrays = vit()
    place = folder(tmp_path / "a", {}, HF, PROCESSOR, name="model-00001-of-00002.safetensors")
    refused(place, "is incomplete")
    shards(place, arrays)
    assert opened(place).facts["heads"] == 3
    (place / "model-00002-of-00002.safetensors").unlink()
    refused(place, "names model-00002-of-00002.safetensors, which is not in the same folder")


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5])
def test_epsilon_of_the_file_is_used(tmp_path, epsilon):
    found = opened(folder(tmp_path / "a", vit(), HF | {"layer_norm_eps": epsilon}, PROCESSOR))
    assert found.facts["options"] == {"epsilon": epsilon} and not found.warnings


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, "has rescale_factor=0.00784.* instead of 1/255, so its"),
        ({"do_rescale": False}, "preprocessor_config.json has do_rescale=false, so its mean and"),
        ({"do_rescale": False, "do_normalize": False}, "do_rescale=false"),
        ({"offset": True}, "has offset=true"),
        ({"image_std": None}, "preprocessor_config.json has no image_std: set mean and std"),
    ],
)
def test_normalization_that_cannot_be_applied_is_demanded(tmp_path, processor, message):
    place = folder(tmp_path / "a", vit(), HF, PROCESSOR | processor)
    refused(place, rf"{message}.*can_jax\.load\(path, (mean|std)=")
    assert opened(place, mean=HALF, std=HALF).facts["mean"] == HALF


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ("[1]", "preprocessor_config.json holds a list"),
        ('{"image_mean": ', "preprocessor_config.json cannot be read"),
        ('{"do_rescale": "false"}', "preprocessor_config.json: do_rescale='false' is neither"),
        ('{"rescale_factor": "x"}', "preprocessor_config.json: rescale_factor='x' is not a pos"),
        ('{"rescale_factor": 0}', "rescale_factor=0 is not a positive"),
        ('{"image_mean": NaN, "image_std": 1}', "json: image_mean=nan: nan is not a finite"),
        ('{"image_mean": [0.5, 0.5], "image_std": 1}', "json: image_mean=.* has 2 values"),
        ('{"image_mean": 0.5, "image_std": [1, 0, 1]}', "json: image_std=.* deviation of 0"),
        ('{"image_mean": "half", "image_std": 1}', "json: image_mean=half: 'half' is not a fin"),
        ('{"image_mean": 0.5, "image_std": 58}', "image_std=58: the values must be for"),
    ],
)
def test_malformed_processor_is_named_itself(tmp_path, processor, message):
    place = folder(tmp_path / "a", vit(), HF)
    (place / "preprocessor_config.json").write_text(processor)
    refused(place, message)
    with pytest.raises(UserError) as error:
        opened(place)
    assert "a/config.json" not in str(error.value)


def test_images_that_are_not_normalized_have_mean_zero(tmp_path):
    place = folder(tmp_path / "b", vit(), HF, PROCESSOR | {"do_normalize": False})
    assert opened(place).facts["std"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 6}, "config.json: num_attention_heads=6, but .*json: model.heads"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ],
)
def test_files_that_contradict_each_other_are_refused(tmp_path, change, message):
    place = folder(tmp_path / "a", vit(), HF | change, PROCESSOR)
    manifest = {"model": {"width": 24, "heads": 3, "mean": HALF, "std": HALF}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    refused(place, message)
    (place / "config.json").write_text(json.dumps(HF))
    assert opened(place).facts["heads"] == 3


def test_bare_file_says_what_it_does_not_state(tmp_path):
    place = folder(tmp_path / "a", vit(), name="mae.safetensors") / "mae.safetensors"
    refused(place, r"heads of a ViT of width 24 and depth 2 is not known: set it \(can_jax\.load")
    found = opened(place, heads=6)
    assert found.facts["heads"] == 6 and found.facts["image_size"] == [16, 16]
    assert found.facts["mean"] == list(IMAGENET["mean"])
    assert "ImageNet's (0.485" in found.warnings[0] and len(found.warnings) == 1
    assert not opened(place, heads=6, mean=HALF, std=HALF).warnings


def test_channels_other_than_three_have_no_usual_normalization(tmp_path):
    place = folder(tmp_path / "a", vit(channels=1), name="a.safetensors") / "a.safetensors"
    refused(place, "mean of the channels is not known", heads=3)
    assert opened(place, heads=3, mean=0.5, std=[0.25]).facts["mean"] == [0.5]
    refused(
        place, "std=.* has 3 values, but the encoder has 1 channels", heads=3, mean=0.5, std=HALF
    )
    refused(place, "not from 0 to 255", heads=3, mean=[127.5], std=[0.5])
    refused(place, "deviation of 0", heads=3, mean=[0.5], std=[0.0])
    refused(place, "mean=.*nan is not a finite number", heads=3, mean=[np.nan], std=0.5)
    refused(place, "mean=True: True is not a finite number", heads=3, mean=True, std=0.5)


def test_heads_of_the_known_sizes(tmp_path):
    arrays = vit(width=1280, depth=1, patch=1, grid=(1, 1))
    known = {k: v for k, v in arrays.items() if not k.startswith("blocks.")}
    known |= {k.replace("blocks.0", f"blocks.{i}"): v for i in range(32)
              for k, v in arrays.items() if k.startswith("blocks.") and "norm" in k}  # fmt: skip
    place = epath.Path(tmp_path / "h.npz")
    np.savez(place, **known)
    assert opened(place).facts["heads"] == 16


def test_contradiction_of_heads_is_refused(tmp_path):
    place = folder(tmp_path / "a", vit(), HF, PROCESSOR)
    refused(place, "heads=4: the weights have 3 heads", heads=4)


def test_big_vision_tells_heads_by_its_shapes_and_differs_in_gelu(tmp_path):
    np.savez(tmp_path / "a.npz", **to_big_vision(vit(), heads=3))
    found = opened(tmp_path / "a.npz", mean=HALF, std=HALF)
    assert found.facts["heads"] == 3 and found.facts["image_size"] == [16, 16]
    assert found.facts["options"] == {"gelu": "tanh"} and not found.warnings
    for gelu, options in (("exact", {}), ("quick", {"gelu": "quick"})):  # as the caller states
        stated = opened(tmp_path / "a.npz", mean=HALF, std=HALF, gelu=gelu)
        assert stated.facts["options"] == options


@pytest.mark.parametrize("layout", ["mae", "huggingface", "big_vision"])
def test_unknown_array_of_every_layout_is_refused_by_name(tmp_path, layout):
    arrays, extra = vit(), "blocks.0.lambda"
    if layout == "huggingface":
        arrays = to_huggingface(arrays, with_decoder=False)
        extra = "encoder.layer.0.lambda"
    elif layout == "big_vision":
        arrays = to_big_vision(arrays, heads=3)
        extra = "Transformer/encoderblock_0/scale"
    np.savez(tmp_path / "a.npz", **arrays, **{extra: np.ones(24, np.float32)})
    refused(tmp_path / "a.npz", f"a.npz: {extra} has no counterpart in this encoder", heads=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("pos_embed"), "there is no pos_embed"),
        (lambda a: a.update(pos_embed=a["pos_embed"] * 0), "holds zeros"),
        (lambda a: a.update(pos_embed=a["pos_embed"][:, :15] / 3), "pos_embed has 15 learned rows"),
        (lambda a: a.pop("patch_embed.proj.weight"), "must have the names of a ViT of MAE, timm"),
        (lambda a: [a.pop(k) for k in list(a) if "blocks" in k], "blocks.0 is missing"),
        (
            lambda a: a.update({"fc_norm.bias": a["norm.bias"]}),
            "fc_norm.bias has no counterpart",
        ),
    ],
)
def test_encoder_of_another_kind_is_refused(tmp_path, change, message):
    arrays = vit()
    change(arrays)
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", message, heads=3)


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_arrays_beside_an_attention_are_refused(tmp_path, part):
    arrays = to_huggingface(vit(), with_decoder=False)
    extra = f"encoder.layer.0.attention.attention.{part}.lora_A.weight"
    refused(folder(tmp_path / part, arrays | {extra: np.ones((2, 24), np.float32)}, HF), extra)


def test_what_hugging_face_leaves_out_is_its_default(tmp_path):
    """Not the heads that ViTs of this width usually have."""
    arrays = to_huggingface(vit(width=48), with_decoder=False)
    place = folder(tmp_path / "a", arrays, {"model_type": "vit", "hidden_size": 48}, PROCESSOR)
    found = opened(place)
    assert found.facts["heads"] == 12 and found.facts["options"] == {"epsilon": 1e-12}
