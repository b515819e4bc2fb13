"""The provenance of a trained classifier's results: encoder, data and settings."""

import hashlib
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from can_jax.checkpoint.identity import IDENTITY, Identity, differences, read_identity
from can_jax.data.evaluation.examples import spread
from can_jax.data.evaluation.pairs import Pair
from can_jax.data.sources.base import Source
from can_jax.evaluate.task import EvalContext, EvalResults
from can_jax.utils.errors import UserError

SAMPLED = 64  # The maximum number of images of a source that `digest_of` hashes.
# Settings of the data that do not change results, such as its location and caches.
DATA_PLACES = ("path", "index", "threads", "cache_gb", "disk_cache", "disk_cache_gb", "skip_limit")
LIMITS = ("train_examples", "test_examples", "held_out")
# Settings of `classify` that do not change results.
PACE = ("save_every_steps", "test_every_epochs", "remat", "trackers")


def classifier_identity(
    context: EvalContext, config: ConfigDict, results: EvalResults, pair: Pair
) -> Identity:
    """Return a dict of the encoder, data and settings that identify the run of a classifier.

    Args:
        context: The evaluation context: configuration, model and data.
        config: The resolved configuration of the classifier's run.
        results: The results, which hold the fingerprints of the training and test splits.
        pair: The training and test sets, whose images are not read yet.
    """
    data = {key: value for key, value in config.data.to_dict().items() if key not in DATA_PLACES}
    sampled = {
        "train_images": digest_of(pair.train.source),
        "test_images": digest_of(pair.test.source),
    }
    return {
        "encoder": context.subject.identity,
        "data": data | dict(results.data) | sampled,
        "run": {"dtype": config.model.dtype, "crop_aspect": config.augment.crop_aspect},
        "protocol": protocol_settings(context.config.to_dict()),
    }


def digest_of(source: Source) -> str:
    """Return a checksum of a source's size and of up to `SAMPLED` evenly spaced images."""
    images, _ = source.read(spread(source.examples, SAMPLED))
    digest = hashlib.sha256(str(source.examples).encode())
    for image in images:
        digest.update(len(image).to_bytes(8, "little") + image)
    return digest.hexdigest()[:16]


def protocol_settings(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation settings that affect the results of a protocol that trains a model.

    The data source and the dtype are omitted, because they default to those of the pretraining run.
    `classifier_identity` adds the data source and the dtype of the classifier's run.

    Args:
        protocol: The configuration of the evaluation, as a dict.
    """
    names = ("protocol", "seed", "batch_size", "features")
    parts = {name: protocol[name] for name in names}
    parts["data"] = {name: protocol["data"].get(name) for name in LIMITS}
    name = protocol["protocol"]
    parts[name] = {k: v for k, v in protocol.get(name, {}).items() if k not in PACE}
    parts["bins"] = protocol["robustness"]["bins"]
    return parts


def check_provenance(results: dict[str, Any], workdir: epath.Path) -> None:
    """Check that the results of a protocol that trains a model belong to the run in ``workdir``.

    Args:
        results: The content of `results.json`.
        workdir: The directory that holds the results and the run.

    Raises:
        UserError: The results belong to another run, or the directory has no file
            ``identity.json``.
    """
    stored = read_identity(workdir)
    if stored is None:
        raise UserError(
            f"{workdir} has no {IDENTITY}, so the weights named in results.json cannot be "
            "verified; repeat the evaluation in another --workdir"
        )
    compared = [{name: stored.get(name) for name in ("encoder", "protocol")}]
    compared.append(
        {"encoder": results["checkpoint"], "protocol": protocol_settings(results["protocol"])}
    )
    if lines := differences(*compared):
        raise UserError(
            f"{workdir}: results.json does not belong to the run in this directory: {lines[0]}"
        )
