"""Objectives other than CAN's on CIFAR-10, with equal numbers of images and one learning rate.

    python -m can_jax.study --config=configs/study/objectives.py --workdir=runs/objectives \
        --config.recipe.data.path=/data/cifar10

The study tests that each objective learns. The arms are CAN, the untrained encoder, and the
variants of `configs/cifar10_methods.py`, for three epochs. The curves of a result hold the kNN
accuracy before the first and after the last step. CAN, SimCLR and CAN with KoLeo have three seeds,
a second learning rate, and for SimCLR also CAN's number of FLOPs. The other arms have one seed.

Hardware: two CPU cores, about ten minutes per arm. Re-running the command resumes the study.
Result: `docs/study_objectives.md`. kNN 44 to 51 %, 36 % for latents, 30 % untrained. Not trained
yet: `can_latents`, equal FLOPs, the second learning rate, and two seeds of `can_koleo`.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.config.baselines import METHODS
from can_jax.evaluate.config import default_evaluation

WIDEST = 512
WIDTHS = ("model.projector.hidden", "model.projector.outputs", "objective.dense.hidden")
COMPARED = ("simclr", "can_koleo")  # with CAN, over several seeds
NAMES = (
    "dcl", "debiased", "hard_negatives", "siglip", "vicreg", "barlow_twins", "mec", "densecl",
    "latents", "can_latents",
)  # fmt: skip
GROUP = {"group": "objectives"}


def changes(name: str) -> dict:
    widths = {key: min(METHODS[name][key], WIDEST) for key in WIDTHS if key in METHODS[name]}
    return METHODS[name] | widths


def get_config() -> ConfigDict:
    recipe = load_recipe(__file__, "../cifar10")
    recipe.total_epochs = 3
    recipe.checkpoint.update(every_steps=1000, keep_last=1)
    evaluation = default_evaluation()
    evaluation.protocol = "linear"
    evaluation.data.train_examples = 20000
    evaluation.linear.update(
        learning_rates=(0.03, 0.3), weight_decays=(0.0,), features=("patches",), epochs=20
    )
    tuned = GROUP | {"tuned": True}
    arms = [{"name": "can", **tuned, "seeds": 3}]
    arms += [{"name": "untrained", **GROUP, "like": "can", "untrained": True}]
    arms += [{"name": name, **tuned, "seeds": 3, "changes": changes(name)} for name in COMPARED]
    arms += [
        {"name": "simclr, equal FLOPs", **GROUP, "like": "simclr", "equal_flops": True, "seeds": 3}
    ]
    arms += [
        {"name": f"{name}, learning rate 0.004", "group": "learning rate", "like": name,
         "changes": {"optimizer.learning_rate": 4e-3}}
        for name in ("can", *COMPARED)
    ]  # fmt: skip
    arms += [{"name": name, **tuned, "changes": changes(name)} for name in NAMES]
    return ConfigDict(
        {
            "name": "objectives",
            "recipe": recipe,
            "evaluation": evaluation,
            "reference": "can",
            "learning_rates": (2e-3,),
            "arms": tuple(arms),
        }
    )
