"""CAN with the paper's denoising branch, and choices on which public implementations disagree.

    python -m can_jax.study --config=configs/study/paper_noise.py --workdir=runs/paper_noise \
        --config.recipe.data.path=/data/cifar10

The recipe is `configs/cifar10.py` with patches of 8 pixels, 1.5 epochs and the paper's denoising
branch. Linear heads on held-out training examples tune the learning rate of each method.

Hardware: two CPU cores, about five hours. Re-running the command resumes the study.
Result: `docs/study_paper_noise.md`. Linear top-1 at equal FLOPs: CAN 45.0, SimCLR 44.6, MAE 43.3 %.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.config.baselines import METHODS, PAPER_NOISE, changed
from can_jax.evaluate.config import default_evaluation

NO_NOISE = {"noise.sigma_max": 0.0, "objective.denoising.weight": 0.0}
MAE = METHODS["mae"] | {f"augment.{n}": v for n, v in (("jitter", 0.8), ("grayscale", 0.2))}
METHOD = {"group": "methods", "tuned": True, "seeds": 3}
EQUAL = {"group": "methods, equal FLOPs", "equal_flops": True, "seeds": 3}
CHOICES: dict[str, dict[str, dict]] = {
    "noise": {
        "noise, not its loss": {"objective.denoising.weight": 0.0, "noise.embed_level": False},
        "noise and loss, level not told": {"noise.embed_level": False},
        "level scale 1": {"noise.level_scale": 1.0},
        "target e": {"noise.target": "unit"},
        "sigma_max 0.2": {"noise.sigma_max": 0.2},
    },
    "mask": {f"mask ratio {r}": {"model.mask_ratio": r} for r in (0.25, 0.75)},
    "contrastive loss": {
        **{f"weight {w}": {"objective.contrastive.weight": w} for w in (0.03, 0.3, 3.0)},
        **{f"temperature {t}": {"objective.contrastive.temperature": t} for t in (0.05, 0.2)},
        "pool all": {"objective.contrastive.pool": "all"},
        "pool class": {"objective.contrastive.pool": "class"},
        "projector without BatchNorm": {"model.projector.batch_norm": False},
        "labels (SupCon)": {"objective.contrastive.supervised": True},
    },
}


def get_config() -> ConfigDict:
    recipe = changed(load_recipe(__file__, "../cifar10"), PAPER_NOISE)  # as published
    recipe.update(total_steps=600, total_epochs=None, log_every_steps=25, model={"patch_size": 8})
    recipe.noise.update(level_tokens="visible", linear_bound=False)
    recipe.optimizer.update(warmup_steps=60, warmup_share=None)
    recipe.checkpoint.update(every_steps=300, keep_last=1)
    recipe.update(probe={"every_steps": 300, "every_epochs": None}, figures={"every_steps": 300})
    evaluation = default_evaluation()
    evaluation.protocol = "linear"
    evaluation.data.train_examples = 20000
    evaluation.linear.update(
        learning_rates=(0.03, 0.3), weight_decays=(0.0,), features=("patches",), epochs=20
    )
    arms = [
        {"name": "CAN", **METHOD, "pictured": True},
        {"name": "CAN without noise", **METHOD, "changes": NO_NOISE},
        {"name": "MAE", **METHOD, "changes": MAE, "pictured": True},
        {"name": "SimCLR", **METHOD, "changes": METHODS["simclr"], "pictured": True},
        {"name": "untrained", "group": "methods", "like": "CAN", "untrained": True, "seeds": 3},
        {"name": "MAE, equal FLOPs", **EQUAL, "like": "MAE"},
        {"name": "SimCLR, equal FLOPs", **EQUAL, "like": "SimCLR"},
        {"name": "MAE, its own augmentation", "group": "methods", "like": "MAE",
         "changes": {"augment.jitter": 0.0, "augment.grayscale": 0.0}},
    ]  # fmt: skip
    for group, choices in CHOICES.items():
        arms += [
            {"name": n, "group": group, "like": "CAN", "changes": c} for n, c in choices.items()
        ]
    return ConfigDict(
        {
            "name": "paper_noise",
            "recipe": recipe,
            "evaluation": evaluation,
            "reference": "CAN",  # arms with `equal_flops` train for its FLOPs
            "learning_rates": (1e-3, 2e-3, 4e-3),
            "arms": tuple(arms),
        }
    )
