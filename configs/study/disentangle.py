"""SimCLR with penalties on correlated dimensions, which are meant to disentangle the embedding.

    python -m can_jax.study --config=configs/study/disentangle.py --workdir=runs/disentangle

SimCLR trains on synthetic shapes, whose generative factors are known, without and with the
objective `disentangle`. The augmentation is weak, so that the embedding can retain several of the
factors. The evaluation measures DCI and the mutual information gap (MIG).

Hardware: two CPU cores, about one minute of CPU time per run. Re-running the command resumes the
study.
Result: `docs/objectives.md`. The penalty lowers DCI.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.config.baselines import METHODS, changed
from can_jax.evaluate.config import default_evaluation

WEIGHTS = {"decorrelation": (10.0, 100.0), "total_correlation": (1.0, 10.0)}


def get_config() -> ConfigDict:
    recipe = changed(load_recipe(__file__, "../quickstart"), METHODS["simclr"])
    recipe.update(total_steps=300, log_every_steps=25)
    recipe.data.image_size = 32
    recipe.model.update(width=48, depth=2, heads=2)
    recipe.augment.update(
        crop_area=(0.8, 1.0), flip=0.0, jitter=0.8, brightness=0.2, contrast=0.2, saturation=0.2,
        hue=0.05, grayscale=0.0,
    )  # fmt: skip
    recipe.checkpoint.update(every_steps=300, keep_last=1)
    recipe.probe.update(every_steps=300, bank=1000, queries=500)
    recipe.figures.every_steps = 0
    evaluation = default_evaluation()
    evaluation.protocol = "disentanglement"
    arms = [
        {"name": "SimCLR", "group": "methods", "tuned": True, "seeds": 3},
        {"name": "untrained", "group": "methods", "like": "SimCLR", "untrained": True, "seeds": 3},
    ]
    for form, weights in WEIGHTS.items():
        for weight in weights:
            changes = {"objective.disentangle.form": form, "objective.disentangle.weight": weight}
            arms += [
                {"name": f"{form.replace('_', ' ')} {weight:g}", "group": "penalty",
                 "like": "SimCLR", "changes": changes, "seeds": 3}
            ]  # fmt: skip
    return ConfigDict(
        {
            "name": "disentangle",
            "recipe": recipe,
            "evaluation": evaluation,
            "reference": "SimCLR",
            "learning_rates": (4e-3,),
            "arms": tuple(arms),
        }
    )
