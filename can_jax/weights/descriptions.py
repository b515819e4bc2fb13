"""Locating weights in a folder, and reading model facts from the other files of the folder."""

from typing import Any

from etils import epath

from can_jax.utils.errors import UserError
from can_jax.utils.files import read_json
from can_jax.weights.library_configs import (
    CONFIG,
    EXACT,
    FORMS,
    Stated,
    is_of_library,
    merged,
    stated_by_library,
)

MANIFEST = "manifest.json"  # Every export of can_jax has one.
FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
EXPORTED = ("model.safetensors", "model.npz")


def stated_beside(file: epath.Path) -> Stated:
    """Return the model facts from the other files in a weight file's folder.

    Args:
        file: The path of the weight file.

    Raises:
        UserError: A file is malformed, describes an unsupported model, or contradicts another file.
    """
    folder, parts = file.parent, []
    manifest = _manifest(folder) or {}
    sums = manifest.get("sha256", {})
    if not isinstance(sums, dict):
        raise UserError(f"{folder / MANIFEST}: sha256={sums!r} is not a table of checksums")
    if manifest and file.name in (sums if "sha256" in manifest else EXPORTED):
        parts.append(stated_by_export(manifest["model"], f"{MANIFEST}: model."))
    shard = file.name.startswith(("model-", "pytorch_model-"))
    if (file.name in FILES or shard) and (folder / CONFIG).exists():
        config = read_json(folder / CONFIG)
        if is_of_library(config):
            parts.append(stated_by_library(folder, config))
    return merged(*parts)


def stated_by_export(facts: dict[str, Any], prefix: str) -> Stated:
    """Return the model facts that an export of can_jax stores, after checking the form of GELU.

    Args:
        facts: The facts by name, such as ``width`` and ``heads``.
        prefix: The prefix of a fact's name in messages, which identifies the file.

    Raises:
        UserError: The model uses a form of GELU that this encoder does not compute.
    """
    if (gelu := facts.get("gelu", EXACT)) not in FORMS.values():
        raise UserError(
            f"{prefix}gelu={gelu!r} is not supported; supported are {', '.join(FORMS.values())}"
        )
    return Stated(facts, {name: f"{prefix}{name}" for name in facts})


def is_run(path: epath.Path) -> bool:
    """Return whether a path is a run directory of can_jax."""
    if not path.is_dir() or _manifest(path) or not (path / CONFIG).exists():
        return False
    return isinstance(read_json(path / CONFIG).get("objective"), dict)


def file_of_folder(folder: epath.Path) -> epath.Path:
    """Return the path of the weight file in an export, or in a folder of Hugging Face or timm.

    Raises:
        UserError: The folder holds no weight file, or is neither an export nor a folder of Hugging
            Face or timm.
    """
    if _manifest(folder):
        files = [folder / name for name in EXPORTED if (folder / name).exists()]
        if not files:
            raise UserError(
                f"{folder} is an export without {' or '.join(EXPORTED)}, which --format=stablehlo "
                "and onnx do not write; export the run with another --format"
            )
        return files[0]
    files = [folder / name for name in FILES if (folder / name).exists()]
    if not (folder / CONFIG).exists():
        hint = f"; use the path of the file itself: {files[0]}" if files else ""
        raise UserError(
            f"{folder} is neither a run directory, nor an export ({MANIFEST}), nor a folder of "
            f"Hugging Face or timm: {CONFIG} is missing{hint}"
        )
    if not is_of_library(read_json(folder / CONFIG)):
        raise UserError(
            f"{folder}/{CONFIG} is neither the configuration of a run nor that of a model of "
            "Hugging Face or timm: it lacks the keys model_type, architectures and architecture"
        )
    if not files:
        raise UserError(f"{folder} is incomplete: it holds none of {', '.join(FILES)}")
    return files[0]


def _manifest(folder: epath.Path) -> dict[str, Any] | None:
    """Return the manifest of an export, or None if the folder is not an export of can_jax."""
    if not (folder / MANIFEST).exists():
        return None
    content = read_json(folder / MANIFEST, of=None)
    model = content.get("model") if isinstance(content, dict) else None
    return content if isinstance(model, dict) and {"width", "heads"} <= model.keys() else None
