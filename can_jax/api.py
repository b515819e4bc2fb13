"""The public functions of the package.

Each imports its dependencies when it is called, so that `import can_jax` stays cheap and changes no
global state of the process.
"""

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from can_jax.encoders.encoder import Encoder


def load(
    path: "str | os.PathLike[str]",
    image_size: "SupportsIndex | Sequence[SupportsIndex] | None" = None,
    *,
    heads: "SupportsIndex | None" = None,
    mean: "SupportsFloat | Sequence[SupportsFloat] | None" = None,
    std: "SupportsFloat | Sequence[SupportsFloat] | None" = None,
    step: "SupportsIndex | None" = None,
    batch_size: "SupportsIndex" = 256,
) -> "Encoder":
    """Load a pretrained encoder onto the devices of this process, to be called with images.

        encoder = can_jax.load("runs/vit_l")
        images = [encoder.preprocess(path) for path in ("a.jpg", "b.jpg")]
        features = encoder(images)  # float32 (2, width)

    Args:
        path: A run directory, one of its checkpoints, an export, a folder of Hugging Face or timm,
            or a file of weights.
        image_size: The size in pixels, or (height, width). Defaults to that of pretraining.
        heads: The number of attention heads. Required only if neither the files nor the size of the
            ViT determine it.
        mean: The mean of images in [0, 1], one for all channels or one for each. Defaults to the
            value that the files state, else to ImageNet's with a warning.
        std: The standard deviation, in the form of ``mean`` and with the same defaults.
        step: The step of a run's checkpoint. Defaults to the latest valid one.
        batch_size: The largest number of images in a forward pass, over all devices.

    Raises:
        can_jax.errors.UserError: The weights cannot be read, or this encoder would not compute
            their model's features.
    """
    from can_jax.encoders.encoder import load_encoder

    return load_encoder(
        path, image_size, heads=heads, mean=mean, std=std, step=step, batch_size=batch_size
    )


def default_config() -> "ConfigDict":
    """Return the default configuration: CAN as in the paper, ViT-B/16 at 224 px.

    `can_jax/config/defaults.py` documents every key.
    """
    from can_jax.config.resolve import default_config as make

    return make()


def pretrain(
    config: "ConfigDict",
    workdir: "str | os.PathLike[str]",
    *,
    allow_changes: Collection[str] = (),
) -> None:
    """Train as configured; resume from the latest checkpoint of the run directory, if any.

    Collective: every process must call this.

    Args:
        config: The configuration of a recipe.
        workdir: The run directory, created if missing; a local path, or a URL such as ``gs://…``.
        allow_changes: Names among ``seed``, ``batch_size`` and ``data`` whose settings may differ
            from those of the checkpoint.

    Raises:
        can_jax.errors.UserError: The configuration, data or run directory is invalid.
        can_jax.errors.Preempted: A signal asked the process to stop; the state is saved.
    """
    from etils import epath

    from can_jax.train.pretrain import pretrain as train

    train(config, epath.Path(workdir), allowed=tuple(allow_changes))


def evaluate_encoder(
    checkpoint: "str | os.PathLike[str]",
    config: "ConfigDict",
    workdir: "str | os.PathLike[str]",
    *,
    untrained: bool = False,
    step: int | None = None,
) -> dict[str, Any]:
    """Evaluate an encoder by a protocol, and return the content of ``results.json``.

    Collective: every process must call this.

    Args:
        checkpoint: A run directory, an export, or a file or folder of weights.
        config: The configuration of a protocol, such as `configs/eval/knn.py` returns.
        workdir: The directory of ``results.json`` and ``report.html``.
        untrained: Evaluate the randomly initialized encoder.
        step: The step of a run's checkpoint. Defaults to the latest valid one.

    Raises:
        can_jax.errors.UserError: The weights, the data or the settings are invalid.
    """
    from etils import epath

    from can_jax.checkpoint.run_directory import step_path
    from can_jax.evaluate.config import resolve_evaluation
    from can_jax.evaluate.measure import evaluate

    resolved = resolve_evaluation(config)
    location = step_path(os.fspath(checkpoint), step)
    return evaluate(resolved, location, epath.Path(workdir), untrained)


def export_encoder(
    checkpoint: "str | os.PathLike[str]",
    format: str,
    output: "str | os.PathLike[str]",
    *,
    contents: str | None = None,
    step: int | None = None,
    heads: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    license: str | None = None,
    data: str | None = None,
    push: str | None = None,
) -> dict[str, Any]:
    """Export weights to another library, and return the manifest.

    Args:
        checkpoint: A run directory, an export, or a file or folder of weights to convert.
        format: ``timm``, ``huggingface``, ``big_vision``, ``safetensors``, ``stablehlo`` or
            ``onnx``.
        output: The directory to create.
        contents: ``encoder``, ``full`` with the decoder, or ``classifier``. Defaults to the
            classifier of a fine-tuned run, else to the encoder.
        step: The step of the run's checkpoint. Defaults to the latest valid one.
        heads: The number of attention heads, if files of weights do not state it, as for `load`.
        mean: The mean of images, if files of weights do not state it, as for `load`.
        std: The standard deviation, if files of weights do not state it, as for `load`.
        license: The license of the weights, for the model card.
        data: What the weights were trained on, for the model card.
        push: The repository to which the directory is uploaded, ``hf://user/name``.

    Raises:
        can_jax.errors.UserError: The run cannot be read, or the verification failed.
    """
    from etils import epath

    from can_jax.checkpoint.run_directory import step_path
    from can_jax.export.model import Given
    from can_jax.export.model_card import Statement
    from can_jax.export.write import export_run

    location = step_path(os.fspath(checkpoint), step)
    return export_run(
        location, format, epath.Path(output), contents,
        given=Given(heads, mean, std), statement=Statement(license, data), push=push,
    )  # fmt: skip


def plan_run(
    config: "ConfigDict", topology: str, *, slices: int = 1, mfu: float | None = None
) -> dict[str, Any]:
    """Compile a train step for devices that are not attached, and estimate its cost.

    A child process compiles, because JAX cannot change its devices once initialized.

    Args:
        config: The configuration of a recipe. Its data is not read.
        topology: The devices, such as ``v5e:16x16`` or ``h100:8x4``.
        slices: The number of slices with this topology, which slower links connect.
        mfu: The assumed model FLOPs utilization, a fraction of peak FLOP/s in (0, 1]; by default
            0.4. It is refused for TPUs, whose compiler estimates the time of a step.

    Returns:
        The memory, collectives, times and run length, as ``python -m can_jax.plan --json`` prints
        them.

    Raises:
        can_jax.errors.UserError: The topology is unknown, or the settings are invalid.
    """
    from can_jax.plan.child import plan_in_child

    return plan_in_child(config, topology, slices, mfu)
