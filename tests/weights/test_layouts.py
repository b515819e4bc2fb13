import numpy as np
import pytest

from can_jax.utils.errors import UserError
from can_jax.weights.layouts import heads_of, to_big_vision, to_huggingface, to_mae


def arrays(depth=2, width=12, patch=4, decoder=True):
    """A small ViT under MAE's names, every number different."""
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 17, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    stacks = [("blocks", depth, width)]
    if decoder:
        small = 8
        shapes |= {
            "mask_token": (1, 1, small), "decoder_pos_embed": (1, 17, small),
            "decoder_embed.weight": (small, width), "decoder_embed.bias": (small,),
            "decoder_norm.weight": (small,), "decoder_norm.bias": (small,),
            "decoder_pred.weight": (48, small), "decoder_pred.bias": (48,),
        }  # fmt: skip
        stacks.append(("decoder_blocks", 1, small))
    for name, count, size in stacks:
        for i in range(count):
            layers = {"attn.qkv": (3 * size, size), "attn.proj": (size, size)}
            layers |= {"mlp.fc1": (4 * size, size), "mlp.fc2": (size, 4 * size)}
            for layer, shape in layers.items():
                shapes[f"{name}.{i}.{layer}.weight"] = shape
                shapes[f"{name}.{i}.{layer}.bias"] = shape[:1]
            for norm in ("norm1", "norm2"):
                shapes[f"{name}.{i}.{norm}.weight"] = shapes[f"{name}.{i}.{norm}.bias"] = (size,)
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("decoder", [False, True])
def test_there_and_back_by_hugging_face(decoder):
    whole = arrays(decoder=decoder)
    theirs = to_huggingface(whole, with_decoder=decoder)
    prefix = "vit." if decoder else ""
    assert f"{prefix}encoder.layer.1.attention.attention.key.bias" in theirs
    assert ("decoder.decoder_layers.0.layernorm_after.weight" in theirs) == decoder
    assert_same(to_mae(theirs), whole)


def test_encoder_alone_leaves_the_decoder_out():
    theirs = to_huggingface(arrays(), with_decoder=False)
    assert not any("decoder" in name or "mask" in name for name in theirs)
    assert_same(to_mae(theirs), arrays(decoder=False) | {k: arrays()[k] for k in to_mae(theirs)})


def test_there_and_back_by_big_vision():
    whole = arrays(decoder=False)
    whole["pos_embed"][:, 0] = 0  # where the class token's would be
    theirs = to_big_vision(whole, heads=3)
    assert theirs["params/embedding/kernel"].shape == (4, 4, 3, 12)
    kernel = "params/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"
    assert theirs[kernel].shape == (12, 3, 4)
    assert_same(to_mae(theirs), whole)


@pytest.mark.parametrize("layout", ["huggingface", "big_vision"])
def test_missing_array_is_named(layout):
    whole = arrays(decoder=False)
    if layout == "huggingface":
        theirs, lost = to_huggingface(whole, with_decoder=False), "attention.attention.value.bias"
    else:
        theirs, lost = to_big_vision(whole, heads=3), "MlpBlock_0/Dense_1/kernel"
    name = next(name for name in theirs if name.endswith(lost))
    del theirs[name]
    with pytest.raises(UserError, match=lost):
        to_mae(theirs)


def test_unknown_layout_stays_as_it_is():
    assert to_mae({"a": np.zeros(1)}).keys() == {"a"}


def of_vision_transformer(theirs):
    names = {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}
    names["MultiHeadDotProductAttention_0"] = "MultiHeadDotProductAttention_1"
    renamed = {}
    for name, array in theirs.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name.removeprefix("params/")] = array
    positions = renamed.pop("pos_embedding")
    whole = np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
    return renamed | {"Transformer/posembed_input/pos_embedding": whole}


def with_stacked_blocks(theirs):
    first = "params/Transformer/encoderblock_0/"
    blocks = {name for name in theirs if "encoderblock_" in name}
    stacked = {name: array for name, array in theirs.items() if name not in blocks}
    for name in blocks:
        if name.startswith(first):
            pair = [theirs[name], theirs[name.replace("encoderblock_0", "encoderblock_1")]]
            stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(pair)
    return stacked


@pytest.mark.parametrize("other", [of_vision_transformer, with_stacked_blocks])
def test_other_names_of_big_vision(other):
    whole = arrays(decoder=False)
    whole["pos_embed"][:, 0] = 0
    theirs = other(to_big_vision(whole, heads=3))
    assert_same(to_mae(theirs), whole)
    assert heads_of(theirs) == 3


def test_blocks_with_other_heads_are_refused():
    theirs = to_big_vision(arrays(decoder=False), heads=3)
    name = "params/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"
    theirs[name] = theirs[name].reshape(12, 4, 3)
    with pytest.raises(UserError, match="blocks have different numbers of attention heads"):
        heads_of(theirs)


def test_big_vision_without_a_class_token_is_refused():
    theirs = to_big_vision(arrays(decoder=False), heads=3)
    del theirs["params/cls"]
    with pytest.raises(UserError, match="have no cls: encoders without a class token"):
        to_mae(theirs)
