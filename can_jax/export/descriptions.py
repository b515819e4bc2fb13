"""The configuration files of timm and Hugging Face for a model and its preprocessing."""

from typing import Any

import numpy as np

from can_jax.augment.crops import enlarged
from can_jax.export.classifier import Head
from can_jax.export.model import Model
from can_jax.models.backbones import encoder_size
from can_jax.utils.errors import UserError

# The libraries' names of the forms of GELU.
HUGGINGFACE_ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}
TIMM_ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_tanh", "quick": "quick_gelu"}
CUBIC = 3  # The number of the bicubic filter in Pillow and in `preprocessor_config.json`.
# The names of timm's architectures by width; `model_args` states all sizes explicitly.
ARCHITECTURES = {
    192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224", 1280: "vit_huge_patch14_224",
}  # fmt: skip
POOLS = {"patches": "avg", "all": "avg", "class": "token", "both": "avg"}  # timm's names
CLASSIFIER = "classifier"  # The contents of an export with the head of a fine-tuned classifier.


def head_of(model: Model) -> Head:
    """Return the head of a fine-tuned classifier.

    Raises:
        UserError: The model has no head.
    """
    if model.head is None:
        raise UserError(f"{model.source} is not a fine-tuned classifier: set --contents=encoder")
    return model.head


def refuse_options(model: Model, format: str, supported: set[str]) -> None:
    """Raise `UserError` for an option of the encoder that a format cannot express."""
    options = model.facts()["options"]
    for name, value in options.items():
        if name not in supported | {"positions", "position_grid"}:
            raise UserError(
                f"--format={format} cannot express {name}={value!r} of this encoder; "
                "--format=safetensors and stablehlo can"
            )


def is_dinov2(model: Model) -> bool:
    """Return whether the encoder has LayerScale or registers, which only the DINOv2 classes of the
    library `transformers` support."""
    return bool({"layer_scale", "registers"} & model.facts()["options"].keys())


def huggingface_class(model: Model, contents: str) -> str:
    """Return the name of the class of the library `transformers` for the exported contents."""
    name: str = huggingface_config(model, contents)["architectures"][0]
    return name


def huggingface_config(model: Model, contents: str, format: str = "huggingface") -> dict[str, Any]:
    """Return the content of `config.json` for a model of the library `transformers`.

    Args:
        model: The model to export.
        contents: The exported part: ``encoder``, ``full`` with the decoder, or ``classifier``.
        format: The format to name in error messages: ``huggingface``, or ``onnx``, which is
            exported from a model of the library `transformers`.

    Raises:
        UserError: The encoder or the head has an option that the library `transformers` does not
            support, or that `ViTMAEForPreTraining` would apply to the decoder too.
    """
    config, size, facts = model.config, encoder_size(model.config.model), model.facts()
    refuse_options(model, format, {"epsilon", "gelu", "layer_scale", "registers"})
    full = contents == "full"
    # Unlike can_jax, `ViTMAEForPreTraining` applies these options to its decoder, too.
    if full and (shared := sorted({"epsilon", "gelu"} & facts["options"].keys())):
        raise UserError(
            f"--format=huggingface does not support --contents=full for an encoder with "
            f"the option {shared[0]}, since Transformers would also apply it to the decoder: "
            "set --contents=encoder"
        )
    kind = "ViTMAEForPreTraining" if full else "ViTModel"
    settings: dict[str, Any] = {
        "architectures": [kind], "model_type": "vit_mae" if full else "vit",
        "hidden_size": size.width, "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads, "intermediate_size": 4 * size.width,
        "hidden_act": HUGGINGFACE_ACTIVATIONS[facts["options"].get("gelu", "exact")],
        "layer_norm_eps": facts["layer_norm_eps"], "image_size": config.data.image_size[0],
        "patch_size": config.model.patch_size, "num_channels": config.data.channels,
        "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if is_dinov2(model):
        if contents != "encoder":
            raise UserError(
                f"--format=huggingface does not support --contents={contents} for an encoder with "
                "layer_scale or registers: set --contents=encoder"
            )
        registers = facts["options"].get("registers", 0)
        name = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
        settings |= {
            "architectures": [name], "mlp_ratio": 4, "use_swiglu_ffn": False,
            "model_type": "dinov2_with_registers" if registers else "dinov2",
            **({"num_register_tokens": registers} if registers else {}),
        }  # fmt: skip
    elif contents == CLASSIFIER:
        head = head_of(model)
        if head.pool != "class" or head.normalizes:
            raise UserError(
                "--format=huggingface requires a head that reads the class token without "
                f"LayerNorm, but this head has features={head.pool} and head_norm="
                f"{head.step.settings.head_norm}; use --format=stablehlo or, if features=patches, "
                "--format=timm"
            )
        settings["architectures"] = ["ViTForImageClassification"]
        settings["id2label"] = dict(enumerate(head.names))
        settings["label2id"] = {name: i for i, name in enumerate(head.names)}
    elif not full:
        settings["pooler_act"] = "linear"  # The pooler passes the class token on; see `pooler`.
    if full:
        decoder = config.model.decoder
        settings |= {
            "decoder_hidden_size": decoder.width, "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": 4 * decoder.width,
            "mask_ratio": config.model.mask_ratio,
            "norm_pix_loss": config.objective.reconstruction.normalize,
        }  # fmt: skip
    return settings


def pooler(width: int) -> dict[str, np.ndarray]:
    """Return the arrays of a pooler that returns the class token unchanged.

    `AutoModel` always builds a pooler. Without these arrays, the pooler would have random weights.
    """
    return {
        "pooler.dense.weight": np.eye(width, dtype=np.float32),
        "pooler.dense.bias": np.zeros(width, np.float32),
    }


def huggingface_processor(model: Model) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`.

    `docs/weights.md` lists three differences between this preprocessing and that of evaluations.
    """
    side, augment = model.config.data.image_size[0], model.config.augment
    return {
        "image_processor_type": "BitImageProcessor", "do_resize": True,
        "size": {"shortest_edge": int(enlarged((side, side))[0])}, "resample": CUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(augment.mean),
        "image_std": list(augment.std), "do_convert_rgb": model.config.data.channels == 3,
    }  # fmt: skip


def timm_arguments(model: Model, contents: str = "encoder") -> dict[str, Any]:
    """Return the arguments with which timm's `VisionTransformer` reproduces the model.

    The timm model returns pooled features or, with a head, the logits of a classifier. The
    features are the class token if the run pools by ``class``, otherwise the mean patch token.

    Raises:
        UserError: The encoder or its head has an option that timm does not support.
    """
    refuse_options(
        model, "timm", {"layer_scale", "registers", "qk_norm", "pre_norm", "norm", "gelu"}
    )
    facts = model.facts()
    options = facts["options"]
    pooling = POOLS[facts["pooling"]]
    arguments = {
        "img_size": facts["image_size"], "patch_size": facts["patch_size"],
        "in_chans": facts["channels"], "embed_dim": facts["width"], "depth": facts["depth"],
        "num_heads": facts["heads"], "global_pool": pooling,
        "fc_norm": options.get("norm") == "pooled",
    }  # fmt: skip
    if "layer_scale" in options:
        arguments["init_values"] = 1.0  # The file holds the values.
    if "registers" in options:
        arguments["reg_tokens"] = options["registers"]
    if "gelu" in options:
        arguments["act_layer"] = TIMM_ACTIVATIONS[options["gelu"]]
    for name in ("qk_norm", "pre_norm"):
        if options.get(name):
            arguments[name] = True
    return arguments | (head_of(model).timm_arguments() if contents == CLASSIFIER else {})


def has_timm_names(model: Model) -> bool:
    """Return whether timm can load the encoder's arrays under MAE's names without changes."""
    shared = {"layer_scale", "qk_norm", "gelu", "positions", "position_grid"}
    return model.facts()["options"].keys() <= shared


def timm_config(model: Model, contents: str) -> dict[str, Any]:
    """Return the content of `config.json` for `timm.create_model("local-dir:…")`."""
    facts, side = model.facts(), model.config.data.image_size[0]
    names = head_of(model).names if contents == CLASSIFIER else ()
    return {
        "architecture": ARCHITECTURES.get(facts["width"], ARCHITECTURES[768]),
        "num_classes": len(names),
        **({"label_names": list(names)} if names else {}),
        "num_features": facts["width"],
        "model_args": timm_arguments(model, contents),
        "pretrained_cfg": {
            "input_size": [facts["channels"], *facts["image_size"]], "fixed_input_size": True,
            "mean": facts["mean"], "std": facts["std"], "interpolation": "bicubic",
            # timm rounds size / crop_pct down.
            "crop_pct": side / (int(enlarged(model.config.data.image_size)[0]) + 0.01),
            "crop_mode": "center",
            "num_classes": len(names),
            "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip


def timm_arrays(model: Model, contents: str = "encoder") -> dict[str, np.ndarray]:
    """Return the arrays of the encoder, and of a classifier's head, under timm's names.

    Raises:
        UserError: An encoder with the option ``pre_norm`` has a nonzero bias in the patch
            embedding.
    """
    arrays, options = model.encoder(), model.facts()["options"]
    if contents == CLASSIFIER:
        head = head_of(model)
        if head.normalizes:  # The head's norm takes the place of the encoder's.
            options = options | {"norm": "tokens"}
            arrays = {k: v for k, v in arrays.items() if not k.startswith("norm.")}
        arrays |= head.arrays(("head", "fc_norm"))
    if options.get("norm") == "pooled":
        for suffix in ("weight", "bias"):
            arrays[f"fc_norm.{suffix}"] = arrays.pop(f"norm.{suffix}")
    if options.get("pre_norm"):  # timm leaves out this bias, which is zero in its models.
        bias = arrays.pop("patch_embed.proj.bias")
        if bias.any():
            raise UserError(
                "--format=timm cannot express a patch embedding with a bias if pre_norm is set; "
                "--format=safetensors and stablehlo can"
            )
    if "reg_token" in arrays:  # Registers have no positions of their own.
        table = arrays["pos_embed"]
        first = np.zeros_like(table[:, : 1 + arrays["reg_token"].shape[1]])
        arrays["pos_embed"] = np.concatenate([first, table[:, 1:]], axis=1)
    return arrays
