r"""Why the paper's denoising branch does not learn in short runs, on CIFAR-10.

    python -m can_jax.study --config=configs/study/denoising.py --workdir=runs/denoising \
        --config.recipe.data.path=/data/cifar10

A small network reconstructs and denoises one view per image, without the contrastive loss. The
arms change the target of the denoising loss, the output layer and the patch embedding.

Hardware: two CPU cores; 39 runs take about one minute of CPU time each. Re-running the command
resumes the study.
Result: `docs/study_denoising.md`.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.config.baselines import changed
from can_jax.evaluate.config import default_evaluation

STEPS = 350
NETWORK = {"model.width": 64, "model.depth": 2, "model.heads": 2, "model.decoder.width": 48}
LENGTH = {"batch_size": 32, "total_epochs": None, "total_steps": STEPS, "log_every_steps": 10}
ONE_VIEW = {"augment.views": 1, "objective.contrastive.weight": 0.0}
PROBE = {"probe.every_epochs": None, "probe.every_steps": STEPS, "probe.bank": 2000}
LOGGED = {"noise explained": "denoising/explained", "reconstruction loss": "loss/reconstruction"}
DEFAULT = "normalized noise, own zero output, whitened patches"


def variant(target: str, output: str, patches: str, reconstruction: str = "") -> dict:
    changes = {
        "noise.target": target,
        "model.decoder.noise_output": "own" in output,
        "model.decoder.zero_output": "zero" in output,
        "model.patch_embed": patches,
    }
    if reconstruction:
        changes["objective.reconstruction.weight"] = 0.0
    name = f"{target} noise, {output} output, {patches} patches"
    return {"name": name + reconstruction, "changes": changes, "seeds": 3}


def get_config() -> ConfigDict:
    recipe = changed(load_recipe(__file__, "../cifar10"), NETWORK | LENGTH | ONE_VIEW | PROBE)
    recipe.probe.queries, recipe.figures.every_steps = 1000, 0
    evaluation = default_evaluation()
    evaluation.update(protocol="linear", data={"train_examples": 5000})
    evaluation.linear.update(
        learning_rates=(0.3,), weight_decays=(0.0,), features=("patches",), epochs=5
    )
    alone = ", no reconstruction"
    causes = [
        variant("scaled", "shared", "linear"),
        variant("scaled", "shared", "linear", alone),
        variant("scaled", "shared zero", "linear", alone),
        variant("scaled", "shared zero", "whitened", alone),
        variant("scaled", "shared", "whitened"),
        variant("scaled", "own zero", "whitened"),
        variant("unit", "shared", "linear"),
        variant("unit", "own zero", "whitened"),
        variant("normalized", "shared", "linear"),
        variant("normalized", "own zero", "linear"),
        variant("normalized", "own zero", "dct"),
    ]
    strong = variant("normalized", "own zero", "linear")
    strong["name"] += ", sigma_max 1"
    strong["changes"]["noise.sigma_max"] = 1.0
    arms = [variant("normalized", "own zero", "whitened") | {"group": "methods", "tuned": True}]
    arms += [arm | {"group": "noise branch", "like": DEFAULT} for arm in (*causes, strong)]
    study = {"name": "denoising", "reference": DEFAULT, "learning_rates": (8e-3,)}
    study |= {"logged": LOGGED, "headline": "noise explained"}
    return ConfigDict(study | {"recipe": recipe, "evaluation": evaluation, "arms": tuple(arms)})
