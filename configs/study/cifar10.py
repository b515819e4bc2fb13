r"""CAN, SimCLR, MAE, variants of CAN's denoising branch, and other objectives, on CIFAR-10.

    python -m can_jax.study --config=configs/study/cifar10.py --workdir=runs/study \
        --config.recipe.data.path=/data/cifar10

The recipe is `configs/cifar10.py` for three epochs. `--config.recipe.total_epochs` sets another
length. All methods share one learning rate; the group "learning rate" shows another one.

Hardware: two CPU cores, about ten minutes per run. Re-running the command resumes the study.
Result: kNN of CAN 48.5, SimCLR 50.0, MAE 38.8 %; both gain from KoLeo. More in `docs/study.md`.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.config.baselines import METHODS
from can_jax.evaluate.config import default_evaluation
from can_jax.study.cells import CELLS, WHITENED

WIDTHS = ("model.projector.hidden", "model.projector.outputs", "objective.dense.hidden")
KOLEO = METHODS["can_koleo"]
REPEATED = {"can": {}, "simclr": METHODS["simclr"], "mae": CELLS["mae"], "can_koleo": KOLEO}
METHOD = {"group": "methods", "seeds": 3}
OBJECTIVES = ("dcl", "debiased", "hard_negatives", "siglip", "vicreg", "barlow_twins", "mec",
              "densecl", "latents", "can_latents")  # fmt: skip
NOISE = ("can_literal", "can_without_noise_whitened", *(name for name in CELLS if "sigma" in name))
VARIANTS: dict[str, dict[str, dict]] = {
    "noise": {name: CELLS[name] for name in NOISE},
    "KoLeo": {name: CELLS[name] for name in CELLS if "koleo" in name},
    "mask": {f"mask ratio {ratio}": {"model.mask_ratio": ratio} for ratio in (0.25, 0.75)},
    "contrastive loss": {
        "weight 0.3": {"objective.contrastive.weight": 0.3},
        "temperature 0.2": {"objective.contrastive.temperature": 0.2},
    },
    "noise level": {"noise level at visible patches": {"noise.level_tokens": "visible"}},
    "reconstruction": {"plain pixels as targets": {"objective.reconstruction.normalize": False}},
}


def narrowed(changes: dict) -> dict:  # heads that suit an encoder of width 96
    return changes | {key: min(changes[key], 512) for key in WIDTHS if key in changes}


def get_config() -> ConfigDict:
    recipe = load_recipe(__file__, "../cifar10")
    recipe.update(total_epochs=3, checkpoint={"every_steps": 1000, "keep_last": 1})
    evaluation = default_evaluation()
    evaluation.update(protocol="linear", data={"train_examples": 20000})
    grid = {"learning_rates": (0.03, 0.3), "weight_decays": (0.0,), "features": ("patches",)}
    evaluation.linear.update(grid, epochs=20)
    arms = [{"name": n, **METHOD, "tuned": True, "changes": c} for n, c in REPEATED.items()]
    arms += [
        {"name": "untrained", "group": "methods", "like": "can", "untrained": True},
        {"name": "simclr_koleo", "group": "methods", "like": "simclr", "changes": KOLEO},
        {"name": "simclr_koleo_whitened", "group": "methods", "like": "simclr",
         "changes": KOLEO | WHITENED},
        {"name": "can_without_noise", "group": "noise", "like": "can", "seeds": 3,
         "changes": CELLS["can_without_noise"]},
    ]  # fmt: skip
    arms += [
        {"name": f"{name}, equal FLOPs", **METHOD, "like": name, "equal_flops": True}
        for name in ("simclr", "simclr_koleo_whitened", "mae")
    ]
    arms += [
        {"name": name, "group": group, "like": "can", "changes": changes}
        for group, variants in VARIANTS.items()
        for name, changes in variants.items()
    ]
    arms += [
        {"name": f"{name}, learning rate 0.004", "group": "learning rate", "like": name,
         "changes": {"optimizer.learning_rate": 4e-3}}
        for name in REPEATED
    ]  # fmt: skip
    arms += [
        {"name": name, "group": "objectives", "tuned": True, "changes": narrowed(METHODS[name])}
        for name in OBJECTIVES
    ]
    study = {"name": "cifar10", "reference": "can", "learning_rates": (2e-3,),
             "logged": {"noise explained": "denoising/explained"}}  # fmt: skip
    return ConfigDict(study | {"recipe": recipe, "evaluation": evaluation, "arms": tuple(arms)})
