"""`python -m can_jax.data.imagenet FROM TO`

Writes indexed shards of ImageNet-1k, or of a data set with the same layout. FROM is a folder with

- the official `ILSVRC2012_img_train.tar`, and for the split val `ILSVRC2012_img_val.tar` and
  `ILSVRC2012_devkit_t12.tar.gz`, all of them packed; or
- the folders `train/CLASS/…` and `val/CLASS/…`; or
- TFRecords, which are indexed in place, so that TO is not needed.

Classes are numbered in the order of their names. Images are shuffled once, over shards of about
140 MB. Re-running the command resumes where it stopped.
"""

from pathlib import Path

from can_jax.cli.command import Command
from can_jax.data.index.imagenet import write_imagenet

COMMAND = Command(__doc__, "FROM", "[TO]")
FLAGS = COMMAND.flags
_SHARDS = FLAGS.integer(
    "shards", None, "The shards of each split; by default one per 140 MB.", lower_bound=1
)
_PARTIAL = FLAGS.switch(
    "partial", False, "Accept official tars whose numbers of images differ from ImageNet-1k's."
)


@COMMAND.runs
def main(source: str, target: str | None = None) -> None:
    """Write the shards and their indices."""
    folder = None if target is None else Path(target)
    write_imagenet(Path(source), folder, _SHARDS.value, _PARTIAL.value)
