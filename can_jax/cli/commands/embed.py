"""`python -m can_jax.embed --checkpoint=FROM --data=DIR --output=features.parquet`

Writes the features of all images of a data set to a Parquet, npz or CSV file, with the name and the
label, if any, of each image. Images that cannot be decoded are listed in a separate file. FROM is a
run directory, an export, or a folder or file of weights. DIR is a folder of images, shards or
arrays. Options `--config.data.…` set keys of `config.data`, as for `can_jax.evaluate`; they require
the name of a protocol, such as `--config=knn`. Keys that select examples or a test split are
rejected, because all images of the split are read. The command evaluates no protocol, and rejects
the keys of protocols. Re-running an interrupted command resumes it.
"""

from pathlib import Path
from typing import Any

from can_jax.checkpoint.run_directory import step_path
from can_jax.cli.command import Command
from can_jax.cli.data import DataFlag
from can_jax.cli.workers import cluster_flag
from can_jax.config.pretrained import FEATURES
from can_jax.encoders.embed import ClusterEncoder, embed
from can_jax.encoders.encoder import evaluated_encoder
from can_jax.encoders.feature_files import check_output
from can_jax.evaluate.config import default_evaluation, resolve_evaluation
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.utils.errors import UserError
from can_jax.utils.progress import phase

# The blocks and keys of an evaluation that this command reads. It rejects all others, and the keys
# of the block `data` that select examples or a test split.
READ = ("data", "model", "mesh", "batch_size", "features")
OF_EVALUATIONS = (
    "data.test_split", "data.held_out", "data.train_examples", "data.test_examples",
)  # fmt: skip

COMMAND = Command(__doc__)
FLAGS = COMMAND.flags
_CONFIG = FLAGS.recipe("protocol")
_CHECKPOINT = FLAGS.path(
    "checkpoint",
    "The encoder: a run directory, an export, a file or folder of weights, or can-cifar10.",
)
_STEP = FLAGS.integer(
    "step", None, "The step of the run's checkpoint to use; by default the latest.", 0
)
_DATA = DataFlag(FLAGS)
_SPLIT = FLAGS.text("split", None, "The split to read; required if the data has several splits.")
_FEATURES = FLAGS.choice(
    "features",
    None,
    list(FEATURES),
    "The feature vector of an image: the mean of the patch tokens (patches), the mean of all "
    "tokens (all), the class token (class), or the class token and the mean patch token (both); by "
    "default patches.",
)
_OUTPUT = FLAGS.path("output", "The file to create, with the suffix .parquet, .npz or .csv.")
_CLUSTER = cluster_flag(FLAGS)


@COMMAND.runs
def main() -> None:
    """Compute the features, and print the number of images, the feature width and the output
    file."""
    if _CHECKPOINT.value is None:
        raise UserError("--checkpoint=FROM is missing: give a run directory, an export, or weights")
    if _OUTPUT.value is None:
        raise UserError("--output=FILE is missing: give the .parquet, .npz or .csv file to create")
    output = Path(_OUTPUT.value)
    check_output(output)
    config = _CONFIG.read() if _CONFIG.given else default_evaluation()
    _DATA.select(config, _CONFIG.overrides)
    if FLAGS.given("features") and "features" in _CONFIG.overrides:
        raise UserError("--features and --config.features set the same value: give one of them")
    for key in sorted(_CONFIG.overrides):
        if key in OF_EVALUATIONS:
            raise UserError(
                f"--config.{key} has no effect on this command, which reads all images of one "
                "split: leave it out, and select the split with --split=NAME"
            )
        if key.split(".")[0] not in READ:
            raise UserError(
                f"--config.{key} has no effect on this command, which evaluates no protocol: leave "
                "it out"
            )
    split = _SPLIT.value
    if "data.split" in _CONFIG.overrides:
        if split is not None:
            raise UserError("--split and --config.data.split set the same value: give one of them")
        split = _CONFIG.overrides["data.split"]
    with config.ignore_type():
        if _FEATURES.value is not None:
            config.features = _FEATURES.value
    config = resolve_evaluation(config)
    path = step_path(_CHECKPOINT.value, _STEP.value)
    with phase("opening the encoder"):
        encoder = evaluated_encoder(path, config)
    address = _CLUSTER.value
    cluster = None if address is None else ClusterEncoder(address, path, config)
    with phase("computing features") as progress:

        def advance(done: int, total: int) -> None:
            progress.detail(f"{done:,} of {total:,} images")

        summary = embed(encoder, encoder.data, split, output, config.features, advance, cluster)
    facts: dict[str, Any] = {"images": summary.images, "width": summary.width}
    if summary.skipped:
        facts["undecodable images"] = summary.skipped
        facts["list of undecodable images"] = f"{output}.skipped.csv"
    facts["file"] = str(output)
    plain_console(width=120, soft_wrap=True, highlight=False).print(fact_table("Embedded", facts))
