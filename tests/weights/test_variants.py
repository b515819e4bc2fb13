"""Encoders of other libraries beyond MAE's structure: the same features, or a refusal by name."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

import can_jax
from can_jax.export import numpy_vit as plain
from can_jax.export import readers
from can_jax.models.encoder import resized_positions
from can_jax.utils.errors import UserError
from can_jax.weights.layouts import to_big_vision, to_huggingface
from can_jax.weights.read_weights import complete, read_weights
from tests.weights.vits import vit

TORCH = pytest.mark.skipif(
    not readers.installed("torch", "timm", "transformers"), reason="needs PyTorch and others"
)
IMAGES = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
MEAN, STD = 0.5, 0.25
PIXELS = ((IMAGES / 255 - MEAN) / STD).astype(np.float32)
GIVEN = {"heads": 3, "mean": MEAN, "std": STD}


def varied(**changes):
    """A ViT with every option of `can_jax.models.variant` that has arrays."""
    rng = np.random.default_rng(5)

    def random(*shape):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    arrays = vit() | {"pos_embed": random(1, 17, 24), "reg_token": random(1, 4, 24)}
    arrays |= {"norm_pre.weight": 1 + random(24), "norm_pre.bias": random(24)}
    for i in range(2):
        arrays |= {f"blocks.{i}.ls{branch}.gamma": random(24) for branch in (1, 2)}
        for name in ("q_norm", "k_norm"):
            arrays[f"blocks.{i}.attn.{name}.weight"] = 1 + random(8)
            arrays[f"blocks.{i}.attn.{name}.bias"] = random(8)
    return arrays | changes


def loaded(place, arrays, config=None, **given):
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(arrays, place / "model.safetensors")
    if config is None:
        given = GIVEN | {"gelu": "exact"} | given
        return can_jax.load(place / "model.safetensors", **given)
    (place / "config.json").write_text(json.dumps(config))
    return can_jax.load(place, mean=MEAN, std=STD, **given)


def assert_features(encoder, tokens, pool=None):
    np.testing.assert_allclose(encoder(IMAGES, "tokens"), tokens, atol=2e-5)
    pooled = tokens[:, 1:].mean(axis=1)
    np.testing.assert_allclose(encoder(IMAGES), pool(pooled) if pool else pooled, atol=2e-5)


def test_every_option_at_once(tmp_path):
    arrays = varied()
    assert_features(loaded(tmp_path, arrays), plain.encode(arrays, PIXELS, heads=3, eps=1e-5))


def test_epsilon_and_gelu_come_from_the_configuration(tmp_path):
    arrays = {k: v for k, v in varied().items() if "norm_pre" not in k and "_norm" not in k}
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    names |= {"reg_token": "embeddings.register_tokens"}
    config = {
        "model_type": "dinov2_with_registers", "hidden_size": 24, "num_attention_heads": 3,
        "layer_norm_eps": 1e-3, "hidden_act": "gelu_pytorch_tanh", "image_size": 16,
        "use_swiglu_ffn": False,
    }  # fmt: skip
    theirs = {}
    for name, array in arrays.items():
        if name in names:
            theirs[names[name]] = array
        elif name.startswith("patch_embed"):
            theirs[name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = (
                array
            )
        elif name.startswith("norm"):
            theirs[f"layer{name}"] = array
        elif "qkv" in name:
            for part, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                inner = name.replace("attn.qkv", f"attention.attention.{part}")
                theirs[f"encoder.layer.{inner.removeprefix('blocks.')}"] = piece
        else:
            inner = name.removeprefix("blocks.").replace("attn.proj", "attention.output.dense")
            inner = inner.replace("ls1.gamma", "layer_scale1.lambda1")
            theirs[f"encoder.layer.{inner.replace('ls2.gamma', 'layer_scale2.lambda1')}"] = array
    encoder = loaded(tmp_path, theirs, config)
    assert_features(encoder, plain.encode(arrays, PIXELS, heads=3, eps=1e-3, gelu="tanh"))
    with pytest.raises(
        UserError, match="use_swiglu_ffn=true is not supported: can_jax has only MLPs"
    ):
        loaded(tmp_path, theirs, config | {"use_swiglu_ffn": True})
    for change, message in (
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; supported are gelu"),
        ({"layer_norm_eps": 0.5}, "layer_norm_eps=0.5: give a number above 0, at most 0.01"),
        ({"qkv_bias": False}, r"qkv_bias=False, but the arrays have blocks\.0\.attn\.qkv\.bias"),
    ):
        with pytest.raises(UserError, match=message):
            loaded(tmp_path, theirs, config | change)


def test_norm_of_the_mean_token_and_biases_that_are_not_there(tmp_path):
    arrays = {k: v for k, v in varied().items() if not k.endswith("qkv.bias")}
    theirs = {k if k.split(".")[0] != "norm" else f"fc_{k}": v for k, v in arrays.items()}
    (stated := tmp_path / "stated").mkdir()
    arguments = {"num_heads": 3, "qkv_bias": True}
    with pytest.raises(UserError, match=r"qkv_bias=True, but the arrays have no blocks\.0\.attn"):
        loaded(stated, theirs, {"architecture": "vit_tiny_patch4_16", "model_args": arguments})
    zeros = {f"blocks.{i}.attn.qkv.bias": np.zeros(72, np.float32) for i in range(2)}
    tokens = plain.encode(arrays | zeros, PIXELS, heads=3, final_norm=False, eps=1e-5)
    encoder = loaded(tmp_path, theirs)
    assert_features(encoder, tokens, lambda x: plain.norm(x, arrays, "norm", 1e-5))
    both = plain.norm(np.stack([tokens[:, 0], tokens[:, 1:].mean(axis=1)]), arrays, "norm", 1e-5)
    np.testing.assert_allclose(encoder(IMAGES, "both"), np.concatenate(both, axis=1), atol=2e-5)


@pytest.mark.parametrize(("rows", "prefix"), [(16, 0), (17, 1), (21, 5)])
def test_positions_of_the_first_tokens_are_part_of_them(tmp_path, rows, prefix):
    table = np.random.default_rng(3).normal(size=(1, rows, 24)).astype(np.float32)
    arrays = varied(pos_embed=table)
    zeros = np.zeros((1, 5 - prefix, 24), np.float32)
    whole = np.concatenate([zeros, table], axis=1)[0] if prefix != 1 else table[0]
    folded = dict(arrays)
    if prefix:
        folded["cls_token"] = arrays["cls_token"] + table[:, :1]
    if prefix == 5:
        folded["reg_token"] = arrays["reg_token"] + table[:, 1:5]
    patches = whole[-16:]
    folded["pos_embed"] = np.concatenate([np.zeros((1, 24), np.float32), patches])[None]
    assert_features(loaded(tmp_path, arrays), plain.encode(folded, PIXELS, heads=3, eps=1e-5))


def test_learned_positions_are_resized(tmp_path):
    arrays = varied()
    encoder = loaded(tmp_path, arrays, image_size=(24, 16))
    table = resized_positions(jax.numpy.asarray(arrays["pos_embed"][0, 1:]), (4, 4), (6, 4))
    folded = arrays | {"cls_token": arrays["cls_token"] + arrays["pos_embed"][:, :1]}
    folded["pos_embed"] = np.concatenate([np.zeros((1, 24), np.float32), table])[None]
    images = np.random.default_rng(1).integers(0, 256, (2, 24, 16, 3), dtype=np.uint8)
    pixels = ((images / 255 - MEAN) / STD).astype(np.float32)
    wanted = plain.encode(folded, pixels, heads=3, eps=1e-5)
    np.testing.assert_allclose(encoder(images, "tokens"), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope.periods": np.ones(4)}, r"rope\.periods has no counterpart in this encoder"),
        ({"dist_token": np.ones((1, 1, 24))}, "dist_token has no counterpart"),
        (
            {"blocks.0.attn.norm.weight": np.ones(24)},
            r"blocks\.0\.attn\.norm\.weight has no counterpart",
        ),
        (
            {"blocks.0.mlp.w12.weight": np.ones(24)},
            r"blocks\.0\.mlp\.w12\.weight has no counterpart",
        ),
        ({"pos_embed": np.ones((1, 19, 24)) / 3}, "pos_embed has 19 learned rows"),
        (
            {"dist_token": np.ones((1, 1, 24)), "pos_embed": np.ones((1, 22, 24)) / 3},
            "dist_token has no counterpart",
        ),
        ({"cls_token": None}, "the weights have no cls_token: encoders without a class token"),
        ({"cls_token": np.ones(1)}, r"cls_token has shape \(1,\), but this encoder has the width"),
        ({"blocks.0.mlp.fc2.weight": np.ones((24, 64))}, "an MLP without a gate, .* is required"),
        ({"pos_embed": np.zeros((1, 17, 24))}, "pos_embed holds zeros"),
        ({"blocks.1.ls2.gamma": None}, r"the weights have no blocks\.1\.ls2\.gamma"),
        ({"blocks.1.attn.qkv.bias": None}, r"the weights have no blocks\.1\.attn\.qkv\.bias"),
        ({"norm.bias": None}, r"the weights have no norm\.bias"),
        ({"reg_token": np.ones((4, 25))}, "reg_token has shape"),
    ],
)
def test_other_arrays_are_refused_by_name(tmp_path, change, message):
    arrays = varied(**change)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, arrays)


# For each layout, arrays that a variant of its encoder might have, and the conversion to it.
LAYOUTS = {
    "MAE, timm, DeiT": (lambda arrays: arrays, "blocks.1.attn.novel.weight norm_novel.bias novel"),
    "Hugging Face": (
        lambda arrays: to_huggingface(arrays, with_decoder=False),
        "encoder.layer.1.attention.novel.weight layernorm_novel.bias embeddings.novel",
    ),
    "DINOv2": (
        lambda arrays: to_huggingface(arrays, with_decoder=False, dinov2=True),
        "encoder.layer.1.mlp.novel.weight layer_scale.lambda1 embeddings.novel",
    ),
    "big_vision": (
        lambda arrays: to_big_vision(arrays, 3),
        "params/Transformer/encoderblock_1/novel/kernel params/Transformer/novel/bias params/novel",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_more_array_is_refused_by_name_in_each_layout(tmp_path, layout):
    convert, more = LAYOUTS[layout]
    arrays = convert(vit())
    place = tmp_path / "a.npz"
    np.savez(place, **arrays)
    assert can_jax.load(place, **(GIVEN | {"heads": None if "/" in more else 3})).width == 24
    for name in more.split():
        np.savez(place, **arrays, **{name: np.ones(3, np.float32)})
        shown = name.removeprefix("params/").replace(
            "encoder.layer.1", r"(encoder\.layer|blocks)\.1"
        )
        with pytest.raises(UserError, match=rf"{shown} has no counterpart in this encoder"):
            can_jax.load(place, **GIVEN)


def test_activation_of_a_norm_before_the_blocks_is_demanded(tmp_path):
    arrays = varied()
    message = "no file states the activation .* quick for the models of OpenAI.* gelu=…"
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, arrays, gelu=None)
    with pytest.raises(UserError, match="model.gelu='relu': give|gelu='relu': give"):
        loaded(tmp_path, arrays, gelu="relu")
    wanted = plain.encode(arrays, PIXELS, heads=3, eps=1e-5, gelu="quick")
    assert_features(loaded(tmp_path, arrays, gelu="quick"), wanted)
    assert np.abs(wanted - plain.encode(arrays, PIXELS, heads=3, eps=1e-5)).max() > 1e-2


def test_activation_of_clip_comes_from_the_configuration_of_timm(tmp_path):
    save_file(varied(), tmp_path / "model.safetensors")

    def gelu_of(architecture, tag, given=None, **arguments):
        config = {"architecture": architecture, "pretrained_cfg": {"tag": tag}}
        config["model_args"] = {"num_heads": 3, "img_size": 16, **arguments}
        (tmp_path / "config.json").write_text(json.dumps(config))
        options = complete(
            read_weights(epath.Path(tmp_path)), mean=MEAN, std=STD, gelu=given
        ).facts["options"]
        return options.get("gelu", "exact")

    plain_name, quick_name = "vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"
    assert gelu_of(quick_name, "openai") == "quick"
    assert gelu_of(quick_name, "openai", act_layer="gelu") == "exact"
    assert gelu_of(plain_name, "laion2b") == gelu_of(plain_name, "openai_ft_in1k") == "exact"
    assert gelu_of(plain_name, "openai", "quick") == "quick"
    message = "clip_224.openai was trained with QuickGELU, but timm computes the exact form: set "
    with pytest.raises(UserError, match=message + "gelu to quick as in the training, or to exact"):
        gelu_of(plain_name, "openai")
    with pytest.raises(
        UserError, match=r"gelu=exact: the weights have gelu=quick \(config.json: arch"
    ):
        gelu_of(quick_name, "openai", "exact")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_values": None}, "init_values=None, but the arrays have such a parameter"),
        ({"reg_tokens": 0}, "reg_tokens=0, but the arrays have such a parameter"),
        ({"class_token": False}, "model_args class_token=False is not supported"),
    ],
)
def test_stated_options_agree_with_the_arrays(tmp_path, arguments, message):
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments}
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, varied(), config)


def of_timm(**options):
    import timm
    import torch

    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    epsilon = {"norm_layer": torch.nn.LayerNorm} if options.get("pre_norm") else {}  # CLIP's
    network = timm.models.VisionTransformer(**sizes, num_classes=0, **epsilon, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # values of their own, as after training
            parameter.add_(0.1 * torch.randn_like(parameter))
        pixels = torch.tensor(PIXELS.transpose(0, 3, 1, 2).copy())
        tokens = network.forward_features(pixels)
        pooled = network.forward_head(tokens, pre_logits=True)
    kept = np.delete(tokens.numpy(), range(1, 1 + options.get("reg_tokens", 0)), axis=1)
    return {k: v.numpy() for k, v in network.state_dict().items()}, kept, pooled.numpy()


@TORCH
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.1},
        {"qk_norm": True},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
        {"pre_norm": True, "qkv_bias": False},
        {"pre_norm": True, "act_layer": "quick_gelu"},
        {"global_pool": "avg", "fc_norm": True},
    ],
)
def test_features_are_those_of_timm(tmp_path, options):
    arrays, tokens, pooled = of_timm(**options)
    encoder = loaded(tmp_path, arrays, gelu="quick" if "act_layer" in options else "exact")
    np.testing.assert_allclose(encoder(IMAGES, "tokens"), tokens, atol=1e-5)
    kind = "patches" if options.get("global_pool") == "avg" else "class"
    np.testing.assert_allclose(encoder(IMAGES, kind), pooled, atol=1e-5)
    with pytest.raises(UserError, match="blocks.0.novel has no counterpart in this encoder"):
        loaded(tmp_path, arrays | {"blocks.0.novel": np.ones(3, np.float32)})


@TORCH
def test_positions_are_resized_as_by_timm():
    import torch
    from timm.layers import resample_abs_pos_embed

    table = np.random.default_rng(0).normal(size=(1, 37 * 37, 8)).astype(np.float32)
    for size in ((16, 16), (48, 40)):
        wanted = resample_abs_pos_embed(torch.tensor(table), list(size), num_prefix_tokens=0)
        found = resized_positions(jax.numpy.asarray(table[0]), (37, 37), size)
        np.testing.assert_allclose(found, wanted[0].numpy(), atol=1e-5)


def of_transformers(kind, place, **options):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16,
        "patch_size": 4, "intermediate_size": 96,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes, **options)
    network = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if kind == "ViTMAE":
            network.config.mask_ratio = 0.0
        network.save_pretrained(place)
        pixels = torch.tensor(PIXELS.transpose(0, 3, 1, 2).copy())
        noise = {"noise": torch.arange(16.0).expand(2, -1)} if kind == "ViTMAE" else {}
        tokens = network(pixels, **noise).last_hidden_state.numpy()
    return network, np.delete(tokens, range(1, 1 + options.get("num_register_tokens", 0)), axis=1)


@TORCH
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViT", {}),
        ("ViT", {"qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"}),
        ("ViTMAE", {}),
        ("Dinov2", {"layerscale_value": 0.5}),
        ("Dinov2WithRegisters", {"num_register_tokens": 4}),
    ],
)
def test_features_are_those_of_transformers(tmp_path, kind, options):
    import torch

    network, tokens = of_transformers(kind, tmp_path, **options)
    encoder = can_jax.load(tmp_path, mean=MEAN, std=STD)
    np.testing.assert_allclose(encoder(IMAGES, "tokens"), tokens, atol=1e-5)
    torch.save(network.state_dict(), tmp_path / "state.pth")  # the names in memory
    if "hidden_act" not in options and kind.startswith("Dino"):
        state = can_jax.load(tmp_path / "state.pth", **GIVEN)
        np.testing.assert_allclose(state(IMAGES, "tokens"), tokens, atol=1e-5)
