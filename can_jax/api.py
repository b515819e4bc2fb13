"""The public functions of `can_jax`, such as `load`, `pretrain` and `evaluate_encoder`.

`import can_jax` is fast and changes no global state of the process, because each function imports
its dependencies only when it is called.
"""

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

from can_jax.utils.quiet import host_logging

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from can_jax.encoders.encoder import Encoder


def load(
    path: "str | os.PathLike[str]",
    image_size: "SupportsIndex | Sequence[SupportsIndex] | None" = None,
    *,
    heads: "SupportsIndex | None" = None,
    gelu: str | None = None,
    mean: "SupportsFloat | Sequence[SupportsFloat] | None" = None,
    std: "SupportsFloat | Sequence[SupportsFloat] | None" = None,
    step: "SupportsIndex | None" = None,
    batch_size: "SupportsIndex" = 256,
) -> "Encoder":
    """Load a pretrained encoder, which maps images to features, onto this process's devices.

        encoder = can_jax.load("runs/vit_l")
        images = [encoder.preprocess(path) for path in ("a.jpg", "b.jpg")]
        features = encoder(images)  # float32 (2, width)

    Args:
        path: A run directory, one of its checkpoints, an export, a Hugging Face or timm folder, a
            file of weights, or the name of an installed encoder: ``can-cifar10``.
        image_size: The size of the input images in pixels: one side for square images, or (height,
            width). By default, the image size of pretraining; required if no file states that size.
        heads: The number of attention heads of the encoder, required only if neither the files nor
            the width and depth of the ViT determine it.
        gelu: The form of the GELU activation: ``exact``, ``tanh`` or ``quick``. Required for a
            CLIP encoder if no file states the form.
        mean: The mean that normalizes images with values in [0, 1]: one number, or one for each
            channel. By default, the mean is read from the files; if the files state no mean, images
            of three channels use ImageNet's mean, with a warning.
        std: The standard deviation that normalizes images with values in [0, 1]: one number, or one
            for each channel. By default, the value is read from the files. If the files state no
            value, images of three channels use ImageNet's standard deviation, with a warning.
        step: The step of the checkpoint to load from a run directory. By default, the latest valid
            checkpoint is loaded.
        batch_size: The maximum number of images in a forward pass, summed over all devices.
            ``batch_size`` is rounded up to a multiple of the number of devices.

    Raises:
        can_jax.errors.UserError: The weights cannot be read, their architecture is not supported,
            or an argument is invalid.
    """
    from can_jax.encoders.encoder import load_encoder

    with host_logging():
        return load_encoder(
            path, image_size, heads=heads, gelu=gelu, mean=mean, std=std, step=step,
            batch_size=batch_size,
        )  # fmt: skip


def default_config() -> "ConfigDict":
    """Return the default configuration: CAN with a ViT-B/16.

    The defaults follow the CAN paper, except those of the denoising branch. The caller must set the
    data, the image size and the length of the run. `can_jax/config/defaults.py` documents every
    key.
    """
    from can_jax.config.resolve import default_config as make

    return make()


def pretrain(
    config: "ConfigDict",
    workdir: "str | os.PathLike[str]",
    *,
    allow_changes: Collection[str] = (),
) -> None:
    """Pretrain an encoder, or resume from the latest valid checkpoint in ``workdir``.

    Collective: every process must call this.

    Args:
        config: The configuration of the run, such as the return value of ``get_config()`` in a
            recipe.
        workdir: The run directory, created if missing; a local path, or a URL such as ``gs://…``.
        allow_changes: The protected settings that this resume may change: any of ``seed``,
            ``batch_size`` and ``data``; none by default. Settings that are not protected, such as
            the mesh and the learning rate, may always change.

    Raises:
        can_jax.errors.UserError: The configuration, data or run directory is invalid,
            ``allow_changes`` has an unknown name, or training diverged.
        can_jax.errors.Preempted: A signal such as SIGTERM stopped the run, after a checkpoint was
            saved.
    """
    from etils import epath

    from can_jax.checkpoint.resume import CHANGES
    from can_jax.train.pretrain import pretrain as train
    from can_jax.utils.errors import UserError
    from can_jax.utils.files import checked_path

    allowed = (allow_changes,) if isinstance(allow_changes, str) else tuple(allow_changes)
    if unknown := [name for name in allowed if name not in CHANGES]:
        raise UserError(f"allow_changes={unknown[0]!r}: choose from {', '.join(CHANGES)}")
    with host_logging():
        train(config, epath.Path(checked_path(workdir)), allowed=allowed)


def evaluate_encoder(
    checkpoint: "str | os.PathLike[str]",
    config: "ConfigDict",
    workdir: "str | os.PathLike[str]",
    *,
    untrained: bool = False,
    step: int | None = None,
) -> dict[str, Any]:
    """Evaluate an encoder with an evaluation protocol; return the content of ``results.json``.

    Collective: every process must call this.

    Args:
        checkpoint: The encoder: a run directory, one of its checkpoints, an export, a file or
            folder of weights, or ``can-cifar10``.
        config: The configuration of the evaluation, for example the return value of
            ``get_config()`` in `configs/eval/knn.py`. If ``checkpoint`` is not from a run
            directory, ``config.data.source`` must be set.
        workdir: The directory to which ``results.json`` and ``report.html`` are written.
        untrained: Whether to replace the trained weights by random initial weights, as a baseline.
        step: The step of the checkpoint to evaluate, if ``checkpoint`` is a run directory. By
            default, the latest valid checkpoint is evaluated.

    Raises:
        can_jax.errors.UserError: The weights, the data or the settings are invalid, or training
            diverged.
        can_jax.errors.Preempted: A signal such as SIGTERM stopped a protocol that trains a model,
            after a checkpoint was saved.
    """
    from etils import epath

    from can_jax.checkpoint.run_directory import step_path
    from can_jax.evaluate.config import resolve_evaluation
    from can_jax.evaluate.measure import evaluate
    from can_jax.utils.files import checked_path

    with host_logging():
        resolved = resolve_evaluation(config)
        location = step_path(checked_path(checkpoint), step)
        return evaluate(resolved, location, epath.Path(checked_path(workdir)), untrained)


def export_encoder(
    checkpoint: "str | os.PathLike[str]",
    format: str,
    output: "str | os.PathLike[str]",
    *,
    contents: str | None = None,
    step: int | None = None,
    heads: int | None = None,
    gelu: str | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    license: str | None = None,
    data: str | None = None,
    push: str | None = None,
) -> dict[str, Any]:
    """Export weights in a format for other libraries; return the content of ``manifest.json``.

    Args:
        checkpoint: The weights to export: a run directory, one of its checkpoints, an export, a
            file or folder of weights, or ``can-cifar10``.
        format: The format of the export: ``timm``, ``huggingface``, ``big_vision``,
            ``safetensors``, ``stablehlo`` or ``onnx``.
        output: The path of the directory to create, which must not exist.
        contents: The part to export: ``encoder``, ``full`` (encoder and decoder) or ``classifier``.
            The default is ``classifier`` for a fine-tuned run, and ``encoder`` otherwise.
        step: The step of the checkpoint to export, if ``checkpoint`` is a run directory. By
            default, the latest valid checkpoint is exported.
        heads: The number of attention heads, for weights that do not determine this number; see
            `load`.
        gelu: The form of the GELU activation, for weights that do not state this form; see `load`.
        mean: The mean that normalizes images, for weights that do not state the mean; see `load`.
        std: The standard deviation that normalizes images, for weights that do not state the
            standard deviation; see `load`.
        license: The license that the model card states for the weights, such as ``apache-2.0``.
        data: The model card's description of the training data.
        push: The Hugging Face repository to which the directory ``output`` is uploaded, as
            ``hf://user/name``. By default, nothing is uploaded.

    Raises:
        can_jax.errors.UserError: The weights cannot be read, an argument is invalid, ``output``
            exists, or the exported weights cannot be verified or uploaded.
    """
    from etils import epath

    from can_jax.checkpoint.run_directory import step_path
    from can_jax.export.model import Given
    from can_jax.export.model_card import Statement
    from can_jax.export.write import export_run
    from can_jax.utils.files import checked_path

    with host_logging():
        location = step_path(checked_path(checkpoint), step)
        return export_run(
            location, format, epath.Path(checked_path(output)), contents,
            given=Given(heads, mean, std, gelu=gelu), statement=Statement(license, data), push=push,
        )  # fmt: skip


def plan_run(
    config: "ConfigDict", topology: str, *, slices: int = 1, mfu: float | None = None
) -> dict[str, Any]:
    """Compile the train step for devices that need not be attached; estimate its memory and time.

    The function blocks until a child process has compiled the step. The step is
    compiled in a child process because JAX cannot change its devices after initialization. If
    ``config.mesh`` does not match the number of devices, the step is planned for a mesh that
    matches, with a warning.

    Args:
        config: The configuration of the pretraining run. The data set is not read.
        topology: The devices, such as the TPU slice ``v5e:16x16``, or ``h100:8x4`` for four hosts
            of eight GPUs.
        slices: The number of TPU slices, each of this topology, connected by the data-center
            network. For GPUs, the number of hosts is multiplied by ``slices``.
        mfu: The assumed model FLOPs utilization, a fraction of peak FLOP/s in (0, 1]; by default
            0.4. ``mfu`` is rejected if the compiler for these devices is installed, because the
            time is then estimated from the compiled program.

    Returns:
        A dict of the estimated memory, collective operations, times and run length, as printed by
        ``python -m can_jax.plan --json``.

    Raises:
        can_jax.errors.UserError: The topology is unknown, a setting is invalid, ``mfu`` is
            rejected, or the planner fails for another reason.
    """
    from can_jax.plan.child import plan_in_child

    return plan_in_child(config, topology, slices, mfu)
