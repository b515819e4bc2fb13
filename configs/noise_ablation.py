"""The four-cell noise ablation on CIFAR-10: what does noise add, and what does each part of it?

    python -m can_jax.main --config=configs/noise_ablation.py:CELL --workdir=runs/noise_CELL \
        --config.data.path=/data/cifar10

CELL is one of
    none    no noise: contrast and reconstruction alone
    noise   noise as augmentation of the input
    loss    noise and its loss, the decoder is not told how much of it there is
    full    noise, its loss, and the noise-level embedding: CAN

That is `--config=configs/noise_ablation.py:full`, say. All else is `configs/cifar10.py`.

Hardware: as `configs/cifar10.py`, for each cell.
Result: by a reader's summary of the paper (its Table 1 and section 3.4), `noise` is better than
`none`, `loss` is worse than `noise`, and `full` is best. In the study, with patches of 8 px and 1.5
epochs, they do not differ: 44.8, 44.8, 45.3 and 45.0 % linear top-1 (`docs/study.md`). There the
denoising loss stayed above the cost of predicting no noise, so that says nothing about the order.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.utils.errors import UserError

CELLS = ("none", "noise", "loss", "full")


def get_config(cell: str = "full") -> ConfigDict:
    if cell not in CELLS:
        raise UserError(f"configs/noise_ablation.py:{cell}: choose one of {', '.join(CELLS)}")
    config = load_recipe(__file__, "cifar10")
    if cell == "none":
        config.noise.sigma_max = 0.0
    if cell in ("none", "noise"):
        config.objective.denoising.weight = 0.0
    config.noise.embed_level = cell == "full"
    return config
