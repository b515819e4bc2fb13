"""`python -m can_jax.data.imagenet FROM TO`

Writes shards and an index of ImageNet-1k, or of a data set with the same layout, to the folder TO.
The folder FROM contains the official tars, class folders, Kaggle's unpacked archive, or TFRecords.
The official tars are `ILSVRC2012_img_train.tar` and, for the split val, `ILSVRC2012_img_val.tar`
and `ILSVRC2012_devkit_t12.tar.gz`; they need not be unpacked. Class folders have the paths
`train/CLASS/…` and `val/CLASS/…`. TFRecords are indexed in place, so TO is not needed for them.

Classes are numbered in the order of their names. The images are shuffled once, and written to
shards of about 140 MB. Re-running an interrupted command resumes it.
"""

from pathlib import Path

from can_jax.cli.command import Command
from can_jax.cli.workers import WorkerFlags
from can_jax.data.conversion.imagenet import write_imagenet

COMMAND = Command(__doc__, "FROM", "[TO]")
FLAGS = COMMAND.flags
_SHARDS = FLAGS.integer(
    "shards", None, "The number of shards of each split; by default one per 140 MB.", lower_bound=1
)
_PARTIAL = FLAGS.switch(
    "partial",
    False,
    "Accept official tars whose number of images differs from that of ImageNet-1k or of the labels "
    "in the development kit.",
)
_WORKERS = WorkerFlags(FLAGS)


@COMMAND.runs
def main(source: str, target: str | None = None) -> None:
    """Write the shards and the index of each split."""
    folder = None if target is None else Path(target)
    write_imagenet(Path(source), folder, _SHARDS.value, _PARTIAL.value, _WORKERS.read())
