"""The model card of an export: a description of the weights, their results and their use."""

import json
from typing import Any, NamedTuple

from etils import epath

from can_jax import __version__
from can_jax.augment.crops import enlarged
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.evaluate.reports.markdown import fill, table
from can_jax.evaluate.reports.provenance import PACE, check_provenance
from can_jax.evaluate.reports.report import data_of, headlines, shown_interval, unit_of
from can_jax.evaluate.reports.results import read_results
from can_jax.export.model import Model
from can_jax.export.usage import snippets
from can_jax.models.backbones import describe
from can_jax.objectives import OBJECTIVES
from can_jax.utils.errors import UserError
from can_jax.weights.digest import sha256_of


class Statement(NamedTuple):
    """The license and the training data as stated by the user; None if not stated."""

    license: str | None = None
    data: str | None = None


LIBRARIES = {"timm": "timm", "huggingface": "transformers", "onnx": "onnx"}
FILES = {
    "timm": 'a folder for timm\'s `create_model("local-dir:…")`',
    "huggingface": "a directory for `from_pretrained` of the library `transformers`",
    "big_vision": 'the flat npz of big_vision\'s `vit.Model` (`pool_type="tok"`, no head)',
    "safetensors": "plain arrays",
    "stablehlo": "a program of `jax.export` for CPU, CUDA and TPU",
    "onnx": "an ONNX graph",
}


def results_of(model: Model, paths: list[str]) -> list[dict[str, Any]]:
    """Read the results of evaluations, and check that they belong to the exported weights.

    Args:
        model: The model to export.
        paths: The results directories of the evaluations.

    Raises:
        UserError: A directory holds no results, or its results do not belong to the exported
            weights and their settings.
    """
    config, matching = model.config, []
    described = describe(config) | {"patch_size": config.model.patch_size}
    described |= {"mean": config.augment.mean, "std": config.augment.std}
    described = json.loads(json.dumps(described))  # as in results.json
    checksums = {sha256_of({"encoder": model.parameters["encoder"]})}
    if model.head:
        checksums.add(sha256_of(model.head.state.parameters))
    for path in paths:
        results = read_results(epath.Path(path))
        checkpoint = results["checkpoint"]
        # The results of the classifier's own training name the encoder before its fine-tuning.
        own = model.head and model.is_latest and epath.Path(path).resolve() == model.run.resolve()
        if not own and checkpoint["sha256"] not in checksums:
            raise UserError(
                f"--results: {path} has results of {checkpoint['path']}, step "
                f"{checkpoint['step']}, but other weights are exported"
            )
        # The same weights with other heads or another normalization are another encoder.
        named = {key: checkpoint[key] for key in ("mean", "std") if key in checkpoint}
        for key, value in (checkpoint.get("model", {}) | named).items():
            if key in described and described[key] != value:
                raise UserError(
                    f"--results: {path} was computed with {key}={value}, but the exported run "
                    f"has {key}={described[key]}"
                )
        try:
            name = results["protocol"]["protocol"]
            if name in PROTOCOLS.names() and PROTOCOLS.get(name).trains:
                check_provenance(results, epath.Path(path))
        except UserError as error:
            raise UserError(f"--results: {error}") from error
        matching.append(results)
    return matching


def recipe_rows(model: Model, data: str | None) -> list[tuple[str, ...]]:
    """Return table rows that summarize the training of a classifier, or the pretraining of any
    other model.

    Args:
        model: The exported model.
        data: The training data as stated by the user; None to state the type of the data source
            instead.
    """
    config = model.config
    weights = config.objective
    kind = " ".join(str(part) for part in (config.data.source, config.data.name) if part)
    rows: dict[str, Any] = {
        "data": data or f"not stated (type of the data source: {kind})",
        "images per step": config.batch_size,
        "steps": model.step,
    }
    if model.head:
        settings = model.head.step.settings.items()
        rows |= {name.replace("_", " "): value for name, value in settings if name not in PACE}
        return [(name, str(value)) for name, value in rows.items()]
    rows |= {
        "views per image": config.augment.views,
        "mask ratio": config.model.mask_ratio,
        "maximum noise sigma": config.noise.sigma_max,
        "loss weights": ", ".join(
            f"{name} {weights[name].weight}" for name in OBJECTIVES if weights[name].weight
        ),
        "optimizer": f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate}, "
        f"weight decay {config.optimizer.weight_decay}",
    }
    return [(name, str(value)) for name, value in rows.items()]


def pretraining_of(model: Model) -> tuple[str, str, list[str]]:
    """Return the name, a description and the tags of the pretraining method of a run.

    The name is CAN only if the three objectives of CAN, and no others, have a nonzero weight.
    """
    blocks = {name: block for name, block in model.config.objective.items() if block.weight}
    known = [name for name in blocks if name in OBJECTIVES]
    labeled = any(OBJECTIVES.get(name).needs_labels(blocks[name]) for name in known)
    tags = [] if labeled else ["self-supervised"]
    if blocks.keys() != {"contrastive", "reconstruction", "denoising"}:
        noun = "objective" if len(blocks) == 1 else "objectives"
        return "can_jax", f"with the {noun} {', '.join(blocks)}", tags
    described = (
        "by contrastive learning, masked autoencoding and noise prediction in one step "
        "([CAN](https://arxiv.org/abs/2210.16870))"
    )
    return "CAN", described, [*tags, "can"]


def result_rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table row for each summary metric of each evaluation."""
    return [
        (
            result["protocol"]["protocol"],
            name + unit_of(name),
            f"{value:.2f}" + (f" ({interval})" if interval else ""),
            data_of(without_path(result)) + _size_of(result),
        )
        for result in results
        for name, value in headlines(result["metrics"]).items()
        for interval in [shown_interval(result, name)]
    ]


def _size_of(result: dict[str, Any]) -> str:
    """Return a phrase with the size of the evaluated images, or "" in older results. The size can
    differ from that in the pretraining."""
    size = result["checkpoint"].get("image_size")
    return ", {} x {} pixels".format(*size) if size else ""


def without_path(result: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `results.json` without the local path of the data."""
    data = result["data"]
    return result | {"data": {key: value for key, value in data.items() if key != "path"}}


def warnings_of(results: list[dict[str, Any]]) -> list[str]:
    """Return a list with one element, the text of all warnings in Markdown. Without warnings,
    return an empty list."""
    lines = [
        fill("- {protocol}: {text}", protocol=result["protocol"]["protocol"], text=text)
        for result in results
        for text in result.get("warnings", [])
    ]
    return ["\n".join(lines)] if lines else []


def card_of(
    model: Model,
    format: str,
    contents: str,
    manifest: dict[str, Any],
    results: list[dict[str, Any]],
    statement: Statement = Statement(),  # noqa: B008, it is immutable
) -> str:
    """Return the model card, which is the text of `README.md`.

    Args:
        model: The exported model.
        format: The name of the format, a key of `FORMATS` in `formats.py`.
        contents: The exported part: ``encoder``, ``full`` or ``classifier``.
        manifest: The manifest, with the results of the verification and of the usage snippets.
        results: The content of `results.json` of each evaluation of these weights.
        statement: The license and the training data as stated by the user.
    """
    facts = model.facts()
    size = f"({facts['width']} wide, {facts['depth']} blocks, {facts['heads']} heads)"
    front = ["---", f"library_name: {LIBRARIES.get(format, 'can_jax')}"]
    purpose = "classification" if contents == "classifier" else "feature-extraction"
    front += [f"pipeline_tag: image-{purpose}"]
    front += [f"license: {statement.license}"] if statement.license else []
    tags = ["image-feature-extraction", "vit"]
    if not (model.imported or model.head):
        method, pretraining, further = pretraining_of(model)
        tags += further
    front += ["tags:", *(f"- {tag}" for tag in tags)]
    parts_of = {"full": "encoder and decoder", "classifier": "encoder with a classifier's head"}
    whole = parts_of.get(contents, "encoder")
    title = f"# ViT {size}, patches of {facts['patch_size']}"
    if model.imported:
        origin = (
            f"The {whole} of a Vision Transformer, converted by can_jax {__version__} from weights "
            f"whose training is not known. Format: {FILES[format]}."
        )
        training = [f"Data, as stated by the exporter: {statement.data or 'not stated'}."]
    elif model.head:
        frozen = model.head.step.settings.freeze_encoder
        origin = (
            f"The {whole} of a Vision Transformer. can_jax {__version__} trained its classifier "
            f"{'on features of the frozen encoder' if frozen else 'together with the encoder'}. "
            f"Format: {FILES[format]}."
        )
        training = [table(recipe_rows(model, statement.data), ("setting", "value"))]
    else:
        title += f", pretrained with {method}"
        origin = (
            f"The {whole} of a Vision Transformer, pretrained {pretraining} by can_jax "
            f"{__version__}. Format: {FILES[format]}."
        )
        training = [
            table(recipe_rows(model, statement.data), ("setting", "value")),
            "`manifest.json` holds the configuration, without local paths.",
        ]
    height, width = facts["image_size"]
    parts = [
        "\n".join([*front, "---"]),
        title,
        origin,
        f"License: {statement.license or 'not stated by the exporter'}.",
        "## Model",
        table([(n.replace("_", " "), v) for n, v in facts.items()], ("fact", "value")),
        "## Preprocessing",
        "An image is resized with a constant aspect ratio to the smallest size that covers {} x {} "
        "pixels, by bicubic interpolation with antialiasing. ".format(*enlarged((height, width)))
        + f"Then the image is cropped to its center of {height} x {width} pixels. Evaluations do "
        "not resize an image that already has the size of the crop. Values in [0, 1] are "
        "normalized by mean and std.",
        "## Training of the classifier" if model.head else "## Pretraining",
        *training,
        "## Results",
        table(result_rows(results), ("protocol", "metric", "value (95 % interval)", "data"))
        if results
        else "No results of evaluations were passed to the export (`--results`).",
        *warnings_of(results),
        "## Use",
        "Run these lines in this directory.",
    ]
    for library, code in snippets(model, format, contents).items():
        ran = manifest["usage"][library]
        parts += [f"With {library} ({ran} when this card was written):", f"```python\n{code}\n```"]
    checked = manifest["checked"]
    errors = [(name, f"{error:.1e}") for name, error in checked["largest_error"].items()]
    parts += [
        "## Checked",
        f"Independent code read these files and computed the outputs for {checked['images']} "
        "images. The error is the largest absolute difference from the outputs of the original "
        "model, divided by their largest absolute value.",
        table(errors, ("read by", "error")),
    ]
    if "with_gelu_by_tanh" in checked:
        parts.append(
            "big_vision computes GELU with tanh. With this GELU, the features have an error of "
            f"{checked['with_gelu_by_tanh']:.1e} relative to the original model."
        )
    return "\n\n".join(parts) + "\n"
