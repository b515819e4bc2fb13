r"""MAE, SimCLR and CAN with variants of its denoising branch, on CIFAR-10; patches of 4 pixels.

    python -m can_jax.study --config=configs/study/cifar10_noise.py --workdir=runs/study_noise \
        --config.recipe.data.path=/data/cifar10

The recipe is `configs/cifar10.py` for 15 epochs. The arms are those of `can_jax/study/cells.py`.
One of them, `can_literal`, has the paper's form of the denoising branch.

Hardware: two CPU cores, about 35 minutes per run. Re-running the command resumes the study.
Result: not measured.
"""

from ml_collections import ConfigDict

from can_jax.config import load_recipe
from can_jax.evaluate.config import default_evaluation
from can_jax.study.cells import CELLS

METHODS = ("can_mended_whitened", "can_without_noise", "mae", "simclr")


def like(name: str) -> str:
    """Return the name of the method whose learning rate an arm uses."""
    return next((method for method in METHODS[1:] if name.startswith(method)), METHODS[0])


def get_config() -> ConfigDict:
    recipe = load_recipe(__file__, "../cifar10")
    recipe.update(total_epochs=15)
    recipe.checkpoint.update(every_steps=1000, keep_last=1)
    recipe.probe.every_epochs = 3
    evaluation = default_evaluation()
    evaluation.protocol = "linear"
    evaluation.linear.update(
        learning_rates=(0.03, 0.3), weight_decays=(0.0,), features=("patches",), epochs=20
    )
    tuned = {"group": "methods", "tuned": True, "seeds": 3, "pictured": True}
    arms = [{"name": name, **tuned, "changes": CELLS[name]} for name in METHODS]
    arms += [
        {"name": name, "group": "noise", "like": like(name), "changes": changes}
        for name, changes in CELLS.items()
        if name not in METHODS
    ]
    return ConfigDict(
        {
            "name": "cifar10_noise",
            "recipe": recipe,
            "evaluation": evaluation,
            "reference": "can_mended_whitened",
            "learning_rates": (1e-3, 2e-3, 4e-3),
            "arms": tuple(arms),
        }
    )
