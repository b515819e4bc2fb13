"""Writing and verifying an export: weights, manifest and model card."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from can_jax import __version__
from can_jax.config.resolve import to_json
from can_jax.export.descriptions import CLASSIFIER
from can_jax.export.formats import FORMATS
from can_jax.export.hub import Repository
from can_jax.export.model import Given, Model, open_model
from can_jax.export.model_card import Statement, card_of, results_of
from can_jax.export.usage import SNIPPETS, run_snippets
from can_jax.export.verify import check
from can_jax.utils.errors import UserError
from can_jax.utils.files import check_directory


def export_run(
    checkpoint: str,
    format: str,
    output: epath.Path,
    contents: str | None = None,
    results: Sequence[str] = (),
    *,
    given: Given = Given(),  # noqa: B008, it is immutable
    statement: Statement = Statement(),  # noqa: B008
    push: str | None = None,
) -> dict[str, Any]:
    """Export the weights of a run, or convert weights of another library.

    The files are written to a temporary directory, which is renamed after verification and removed
    on failure.

    Args:
        checkpoint: The path of a run directory, a checkpoint, an export or a weight file; see
            `open_model`.
        format: The name of the format, a key of `FORMATS`.
        output: The directory to create; must not exist yet.
        contents: The part to export: ``encoder``, ``full`` (encoder and decoder) or ``classifier``.
            The default is ``classifier`` for a fine-tuned run, else ``encoder``.
        results: Results directories of evaluations of these weights, for the model card.
        given: Facts that weight files do not state, such as the number of heads.
        statement: The license and the training data as stated by the user, for the model card.
        push: The Hugging Face repository to which the directory is uploaded, ``hf://user/name``.
            None uploads nothing.

    Returns:
        The manifest.

    Raises:
        UserError: The model cannot be read, the format does not support the model, or ``output``
            exists. The error is also raised if ``results`` belong to another model, the
            verification fails, or the upload fails.
    """
    if output.exists():
        raise UserError(f"--output={output} already exists: remove it, or set another directory")
    check_directory(output, "--output=")
    if format not in FORMATS:
        raise UserError(f"--format={format}: choose one of {', '.join(FORMATS)}")
    repository = Repository(push) if push else None
    model = open_model(checkpoint, given)
    contents = contents or ("encoder" if model.head is None else CLASSIFIER)
    if (format, contents) not in SNIPPETS:
        raise UserError(
            f"--format={format} does not support --contents={contents}: set --contents="
            + " or ".join(part for name, part in SNIPPETS if name == format)
        )
    if model.imported and contents != "encoder":
        raise UserError(
            f"--checkpoint={checkpoint} is not a run, so only its encoder can be exported: set "
            "--contents=encoder"
        )
    measured = results_of(model, list(results))
    folder = output.with_name(f"{output.name}.tmp")
    if folder.exists():
        folder.rmtree()
    folder.mkdir(parents=True)
    try:
        manifest = _write(model, format, contents, folder, measured, statement)
        folder.rename(output)
    except BaseException:
        if folder.exists():
            folder.rmtree()
        raise
    if repository:
        repository.upload(output)
    return manifest


LOCAL = ("path", "index", "labels", "disk_cache")  # keys of paths in a data block


def public_config(config: ConfigDict) -> dict[str, Any]:
    """Return a configuration as JSON values, without `init_from` and without the paths of data and
    caches."""
    values: dict[str, Any] = json.loads(to_json(config))
    values["init_from"] = None
    values["data"] |= dict.fromkeys(LOCAL)
    values["data"]["mixture"] = [
        {key: value for key, value in part.items() if key not in LOCAL}
        for part in values["data"]["mixture"]
    ]
    return values


def _write(
    model: Model,
    format: str,
    contents: str,
    folder: epath.Path,
    results: list[dict[str, Any]],
    statement: Statement,
) -> dict[str, Any]:
    """Write and verify the files of an export: weights, `manifest.json` and `README.md`.

    Returns:
        The manifest.

    Raises:
        UserError: The format does not support the model, or the verification failed.
    """
    file = FORMATS[format](model, contents, folder)
    written = sorted(folder.iterdir())
    manifest: dict[str, Any] = {
        "format": format,
        "contents": contents,
        "model": model.facts(),
        **({} if model.imported else {"config": public_config(model.config)}),
        "checked": check(model, format, contents, folder, file),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written},
        "written_by": f"can_jax {__version__}, jax {jax.__version__}",
    }
    # The snippets call `can_jax.load`, which needs the manifest, so it is written before they run.
    manifest_path = folder / "manifest.json"
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n")
    manifest["usage"] = run_snippets(model, format, contents, folder)
    manifest_path.write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "README.md").write_text(
        card_of(model, format, contents, manifest, results, statement)
    )
    return manifest
