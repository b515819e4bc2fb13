"""The model card of an export: a description of the weights, their results and their use."""

from typing import Any

from etils import epath

from can_jax import __version__
from can_jax.evaluate.protocols.registry import PROTOCOLS
from can_jax.evaluate.reports.markdown import fill, table
from can_jax.evaluate.reports.provenance import check_provenance
from can_jax.evaluate.reports.report import data_of, headlines
from can_jax.evaluate.reports.results import read_results
from can_jax.export.model import Model
from can_jax.export.usage import snippets
from can_jax.objectives import OBJECTIVES
from can_jax.utils.errors import UserError
from can_jax.weights.digest import sha256_of

LIBRARIES = {"timm": "timm", "huggingface": "transformers", "onnx": "onnx"}
FILES = {
    "timm": "the state dict of timm's `VisionTransformer`",
    "huggingface": "a directory for `from_pretrained` of transformers",
    "big_vision": 'the flat npz of big_vision\'s `vit.Model` (`pool_type="tok"`, no head)',
    "safetensors": "plain arrays",
    "stablehlo": "a program of `jax.export` for CPU, CUDA and TPU",
    "onnx": "an ONNX graph",
}


def results_of(model: Model, paths: list[str]) -> list[dict[str, Any]]:
    """Return the results of evaluations of exactly these weights.

    Args:
        model: The model to export.
        paths: The directories of the evaluations.

    Raises:
        UserError: A directory holds no results, or results of other weights or settings.
    """
    facts = model.facts()
    expected, matching = sha256_of({"encoder": model.parameters["encoder"]}), []
    for path in paths:
        results = read_results(epath.Path(path))
        checkpoint = results["checkpoint"]
        if checkpoint["sha256"] != expected:
            raise UserError(
                f"--results: {path} belongs to other weights: {checkpoint['path']}, step "
                f"{checkpoint['step']}"
            )
        # The same weights with other heads or another normalization are another encoder.
        named = {key: checkpoint[key] for key in ("mean", "std") if key in checkpoint}
        for key, value in (checkpoint.get("model", {}) | named).items():
            if key in facts and facts[key] != value:
                raise UserError(
                    f"--results: {path} belongs to these weights with {key}={value}, but the run "
                    f"has {key}={facts[key]}"
                )
        try:
            name = results["protocol"]["protocol"]
            if name in PROTOCOLS.names() and PROTOCOLS.get(name).trains:
                check_provenance(results, epath.Path(path))
        except UserError as error:
            raise UserError(f"--results: {error}") from error
        matching.append(results)
    return matching


def recipe_rows(model: Model) -> list[tuple[str, ...]]:
    """Return table rows that summarize the pretraining recipe."""
    config = model.config
    data, weights = config.data, config.objective
    rows = {
        "data": " ".join(str(part) for part in (data.source, data.name, data.path) if part),
        "images a step": config.batch_size,
        "views of an image": config.augment.views,
        "steps": model.step,
        "mask ratio": config.model.mask_ratio,
        "noise, largest sigma": config.noise.sigma_max,
        "weights of the losses": ", ".join(f"{name} {weights[name].weight}" for name in OBJECTIVES),
        "optimizer": f"{config.optimizer.name}, rate {config.optimizer.learning_rate}, "
        f"weight decay {config.optimizer.weight_decay}",
    }
    return [(name, str(value)) for name, value in rows.items()]


def result_rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table row for each summary metric of each evaluation."""
    return [
        (result["protocol"]["protocol"], name, f"{value:.2f}", data_of(result))
        for result in results
        for name, value in headlines(result["metrics"]).items()
    ]


def warnings_of(results: list[dict[str, Any]]) -> list[str]:
    """Return a list with one string, the warnings of all evaluations in Markdown; empty without
    warnings."""
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
) -> str:
    """Return the text of `README.md`.

    Args:
        model: The exported model.
        format: The name of the format, a key of `FORMATS` in `formats.py`.
        contents: The exported part, ``encoder`` or ``full``.
        manifest: The manifest, with the results of the verification and of the usage snippets.
        results: The results of evaluations of these weights.
    """
    facts = model.facts()
    size = f"({facts['width']} wide, {facts['depth']} blocks, {facts['heads']} heads)"
    front = ["---", f"library_name: {LIBRARIES.get(format, 'can_jax')}", "tags:"]
    front += [f"- {tag}" for tag in ("image-feature-extraction", "self-supervised", "vit", "can")]
    whole = "encoder and decoder" if contents == "full" else "encoder"
    parts = [
        "\n".join([*front, "---"]),
        f"# ViT {size}, patches of {facts['patch_size']}, pretrained with CAN",
        f"The {whole} of a Vision Transformer, pretrained by contrastive learning, masked "
        "autoencoding and noise prediction in one step ([CAN](https://arxiv.org/abs/2210.16870)) "
        f"with can_jax {__version__}. Format: {FILES[format]}.",
        "## Model",
        table([(n.replace("_", " "), v) for n, v in facts.items()], ("fact", "value")),
        "## Pretraining",
        table(recipe_rows(model), ("setting", "value")),
        "The whole configuration is in `manifest.json`.",
        "## Results",
        table(result_rows(results), ("protocol", "metric", "value", "data"))
        if results
        else "None were given to the export (`--results`).",
        *warnings_of(results),
        "## Use",
        "Run these lines in this directory.",
    ]
    for library, code in snippets(model, format, contents).items():
        ran = manifest["usage"][library]
        parts += [f"With {library} ({ran} when this was written):", f"```python\n{code}\n```"]
    checked = manifest["checked"]
    errors = [(name, f"{error:.1e}") for name, error in checked["largest_error"].items()]
    parts += [
        "## Checked",
        f"Other code read these files and computed features of {checked['images']} images. The "
        "error is the largest difference from the run's features over the largest value.",
        table(errors, ("read by", "error")),
    ]
    if "with_gelu_by_tanh" in checked:
        parts.append(
            "These weights were trained with the exact GELU. big_vision computes it with tanh: its "
            f"features differ by {checked['with_gelu_by_tanh']:.1e}."
        )
    return "\n\n".join(parts) + "\n"
