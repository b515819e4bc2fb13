"""CAN, ViT-L/16 at 224 px: the paper's run on JFT-300M, for any data set of that size.

    python -m can_jax.main --config=configs/jft_vit_l.py:EPOCHS --workdir=runs/jft_vit_l \
        --config.data.path='/data/shards/train-{00000..16383}.tar'

EPOCHS is the length of the run in epochs of ImageNet-1k's size, 1,281,167 images each: 5000 by
default. The paper also has results for 800, 1600 and 3000. The recipe sets `total_examples`,
so the size of the data set does not change the length. The cosine schedule ends with the run. To
compare with a shorter length, start a run of that length: the learning rate of a longer run that is
stopped early has not decayed.

`data.path` names tars of images (WebDataset), at least one for each process. No labels are needed.
TFRecords are read with `--config.data.source=tfrecord`. Shards are streamed from start to end,
which needs no index, but excludes probes and figures. `data.examples` is the approximate number of
images; only the logged epochs depend on it. `--config.data.streaming=False` reads the shards in
random order instead, by byte offset.

Hardware: 432 GFLOP per image and step. 5000 epochs are 2.8e21 FLOP and 1.56 million steps, on 64
H100 at 50 % of their peak about a day; 800 are 4.4e20 FLOP, about four hours (arithmetic, not a
measurement). The table of slices in `configs/vit_l.py` also applies here: the train step is the
same.

Result: linear probe on ImageNet-1k (%) by epochs on JFT-300M, from the paper (Table 2), with SimCLR
and MAE by the same authors:

              800   1600  3000  5000
    CAN       72.8  74.3  75.3  75.4
    SimCLR    72.6  73.1        73.4
    MAE             50.5        64.1

Fine-tuned after 5000 epochs (abstract on arXiv): CAN 86.1, SimCLR 85.5, MAE 85.4 %. A later
abstract has 85.9 for CAN. Not reproduced here.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.utils.errors import UserError

IMAGENET = 1_281_167  # images of an epoch, as the paper counts them


def get_config(epochs: str = "5000") -> ConfigDict:
    if not (epochs.isascii() and epochs.isdigit() and int(epochs)):
        raise UserError(f"configs/jft_vit_l.py:{epochs}: give a whole number of epochs above 0")
    config = load_recipe(__file__, "vit_l")
    config.total_epochs = None
    config.total_examples = int(epochs) * IMAGENET
    config.data.update(source="webdataset", streaming=True, examples=300_000_000)
    config.figures.every_steps = None
    return config
