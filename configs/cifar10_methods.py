"""Methods other than CAN on CIFAR-10, as variants of one recipe.

    python -m can_jax.main --config=configs/cifar10_methods.py:vicreg --workdir=runs/vicreg \
        --config.data.path=/data/cifar10

The variants are those of `can_jax.config.baselines.METHODS`: `can`, `mae`, `simclr` (the default),
`dcl`, `debiased`, `hard_negatives`, `siglip`, `vicreg`, `barlow_twins`, `mec`, `densecl`,
`latents`, `can_latents`, `can_koleo`, `simclr_disentangled`. The encoder, the data and the schedule
are those of `configs/cifar10.py`, but a run has three epochs. The heads are narrower than in the
papers; docs/objectives.md lists the settings of the papers.

Hardware: two CPU cores, about seven minutes per variant.
Result: not measured; `configs/study/cifar10.py` compares the methods.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.config.baselines import METHODS, changed
from can_jax.utils.errors import UserError


def get_config(method: str = "simclr") -> ConfigDict:
    if method not in METHODS:
        raise UserError(f"cifar10_methods.py:{method}: give one of {', '.join(METHODS)}")
    config = changed(load_recipe(__file__, "cifar10"), METHODS[method])
    config.total_epochs = 3
    config.model.projector.update(layers=2, hidden=512, outputs=128)
    config.objective.dense.hidden = 512
    if method in ("vicreg", "barlow_twins", "mec"):
        config.model.projector.outputs = 512
    return config
