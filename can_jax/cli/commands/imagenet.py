"""`python -m can_jax.data.imagenet FROM TO`

Makes indexed shards of ImageNet-1k, or of anything laid out like it. FROM is a folder with

- the official `ILSVRC2012_img_train.tar`, and for the split val `ILSVRC2012_img_val.tar` and
  `ILSVRC2012_devkit_t12.tar.gz`, none of which has to be unpacked; or
- the folders `train/CLASS/…` and `val/CLASS/…`; or
- TFRecords, which are indexed where they are, so that TO is not needed.

Classes are numbered in the order of their names. Images are shuffled once, over shards of about
140 MB. The same command again goes on where it was stopped.
"""

from pathlib import Path

from can_jax.cli.command import Command
from can_jax.data.index.imagenet import write_imagenet

COMMAND = Command(__doc__, "FROM", "[TO]")
FLAGS = COMMAND.flags
_SHARDS = FLAGS.integer("shards", None, "Of each split; by default one for 140 MB.", lower_bound=1)
_PARTIAL = FLAGS.switch(
    "partial", False, "Accept official tars with other numbers of images than ImageNet-1k has."
)


@COMMAND.runs
def main(source: str, target: str | None = None) -> None:
    """Write the shards."""
    folder = None if target is None else Path(target)
    write_imagenet(Path(source), folder, _SHARDS.value, _PARTIAL.value)
