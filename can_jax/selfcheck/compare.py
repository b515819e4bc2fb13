"""A comparison of this installation with a file of reference outputs, losses and gradients.

The file also holds the weights and inputs from which this installation computes its outputs,
losses and gradients.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from can_jax.models import can
from can_jax.models.encoder import positions_with_class
from can_jax.models.heads import sincos_level
from can_jax.models.masking import hidden_mask, patchify
from can_jax.objectives.denoising import denoising_loss
from can_jax.selfcheck.reference_file import OUTPUTS, File, check_arrays, config_of, read
from can_jax.train.losses import Inputs, Noise, forward, losses
from can_jax.train.network import abstract_network
from can_jax.train.step import Step, make_step
from can_jax.utils.errors import UserError
from can_jax.weights.accounting import grid_of_positions, refuse_unused
from can_jax.weights.reading import read_contents
from can_jax.weights.torch_layout import entries, from_torch, to_torch

SHIPPED = Path(__file__).with_name("reference.npz")  # from `tests/helpers/write_reference.py`


def tolerance(quantity: str, x64: bool) -> float:
    """Return the largest error at which a quantity passes the comparison."""
    if x64:
        return 1e-8
    return 1e-3 if quantity.startswith("grad/") else 1e-4


def inputs_of(config: ConfigDict, file: File, order: np.ndarray) -> Inputs:
    """Return the network inputs that a reference file contains, with the views of an image in
    consecutive rows.

    Args:
        config: The configuration of the network that the file describes.
        file: The arrays of the file. In the file, the rows of an array hold the first view of each
            image, then the second view of each, and so on.
        order: The indices of the file's rows, ordered so that the views of an image are
            consecutive.
    """
    dtype = jnp.dtype(config.model.dtype)

    def patches(name: str) -> jax.Array:
        return patchify(jnp.asarray(file[name][order], dtype), config.model.patch_size)

    return Inputs(
        clean=patches("in/views"),
        noise=Noise(jnp.asarray(file["in/sigma"][order], dtype), patches("in/unit_noise")),
        shuffle=jnp.asarray(file["in/shuffle"][order], jnp.int32),
        labels=jnp.full(config.batch_size, -1),
    )


def statistics_of(config: ConfigDict, file: File) -> Any:
    """Return the variables of the network that are not trained: a fixed linear map of patches, if
    any."""
    if config.model.patch_embed == "linear":
        return {}
    dtype = jnp.dtype(config.model.dtype)
    arrays = {"map_mean": file["in/patch_mean"], "map": file["in/patch_map"]}
    stored = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    return {"encoder": {"patch_embed": stored}}


def compute(step: Step, parameters: Any, statistics: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    """Compute all quantities that a reference file can contain; outputs have their rows in the
    order of ``inputs``."""
    config = step.config

    def loss(parameters: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(step.network, parameters, statistics, copy=True)
        outputs = forward(config, model, inputs)
        total, metrics = losses(config, model, outputs, inputs)
        return total, (outputs, model.projector(outputs.pooled, train=True), metrics)

    with jax.default_matmul_precision("highest"):  # Accelerators round products by default.
        gradient, (outputs, projection, metrics) = jax.jit(jax.grad(loss, has_aux=True))(parameters)
    assert inputs.noise is not None
    hidden = hidden_mask(inputs.shuffle, outputs.latent.shape[1] - 1)
    quantities = {
        "latent": outputs.latent,
        "pooled": outputs.pooled,
        "projection": projection,
        "noise_level_sinusoid": sincos_level(
            inputs.noise.sigma * can.level_scale(config), config.model.width
        ),
        "noise_level_embedding": outputs.noise_level,
        "prediction": outputs.prediction,
        "mask": hidden,
        "loss/denoising_unit_noise": denoising_loss(outputs.prediction, inputs.noise.unit, hidden),
    }
    quantities |= {name: value for name, value in metrics.items() if name.startswith("loss/")}
    quantities |= {
        f"grad/{name}": array for name, array in to_torch(gradient, config.model.patch_size).items()
    }
    return {name: np.asarray(value) for name, value in quantities.items()}


def reference_values(file: File, order: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs, losses and gradients in a reference file, with the rows of each output
    reordered by the indices ``order``."""
    quantities = {}
    for name, array in file.items():
        if name.startswith("out/"):
            quantities[name.removeprefix("out/")] = array[order].astype(np.float64)
        elif name.startswith(OUTPUTS):
            quantities[name] = array.astype(np.float64)
    return quantities


def errors(computed: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the relative error of each quantity.

    A relative error is the largest absolute difference, divided by the largest absolute reference
    value. The difference of a gradient is divided by at least 1e-6 times the largest absolute entry
    of all gradients. If the divisor would be 0, the error is the absolute difference. Gradients are
    compared array by array, and only the largest error of each block or module is returned.

    Args:
        computed: The quantities that this installation computed, by name.
        expected: The reference quantities in the file, by name.

    Raises:
        UserError: A quantity in the file is unknown, or has another shape than the computed
            quantity.
    """
    missing = sorted(set(expected) - set(computed))
    if missing:
        raise UserError(
            f"{missing[0]} in the reference file is not a quantity that this version computes"
        )
    for name, reference in expected.items():
        if computed[name].shape != reference.shape:
            raise UserError(
                f"{name} has shape {reference.shape} in the reference file, but shape "
                f"{computed[name].shape} in this version"
            )
    largest_gradient = max(
        (np.abs(array).max() for name, array in expected.items() if name.startswith("grad/")),
        default=0.0,
    )
    worst: dict[str, float] = {}
    for name, reference in expected.items():
        scale = np.abs(reference).max()
        if name.startswith("grad/"):
            scale = max(scale, 1e-6 * largest_gradient)  # Some gradients are zero by symmetry.
        difference = np.abs(computed[name].astype(np.float64) - reference).max()
        error = float(difference / scale) if scale else float(difference)
        group = group_of(name)
        worst[group] = max(worst.get(group, 0.0), error if np.isfinite(error) else np.inf)
    return worst


def group_of(name: str) -> str:
    """Return the name under which a quantity is reported: for a gradient, its block or module."""
    if not name.startswith("grad/"):
        return name
    parts = name.removeprefix("grad/").split(".")
    return "grad/" + ".".join(parts[: 2 if parts[0].endswith("blocks") else 1])


def position_errors(config: ConfigDict, file: File) -> dict[str, float]:
    """Return the largest absolute error of each fixed position embedding that the file holds."""
    widths = {"pos_embed": config.model.width, "decoder_pos_embed": config.model.decoder.width}
    worst = {}
    for name, width in widths.items():
        if f"param/{name}" in file:
            ours = positions_with_class(can.grid_of(config), width)
            theirs = file[f"param/{name}"]
            if theirs.shape != (1, *ours.shape):
                raise UserError(
                    f"{name} has shape {theirs.shape} in the reference file, but shape "
                    f"{(1, *ours.shape)} in this version"
                )
            worst[name] = float(np.abs(ours - theirs[0]).max())
    return worst


def refuse_unknown(weights: File, names: list[str]) -> None:
    """Raise `UserError` if a reference file has a parameter that the network does not have."""
    positions = ("pos_embed", "decoder_pos_embed")
    if unknown := sorted(weights.keys() - {*names, *positions}):
        raise UserError(
            f"param/{unknown[0]} has no counterpart in the network that the reference file "
            "describes"
        )


def check(path: str, x64: bool, weights_path: str | None = None) -> dict[str, Any]:
    """Compare this installation with a reference file.

    Args:
        path: The path of the reference file.
        x64: Whether to compute in double precision, which the caller must have enabled in JAX.
        weights_path: The path of a weight file, or None. The parameters in the weight file replace
            those of the reference file, except the position embedding of the encoder.

    Returns:
        A dict with the keys ``max_relative_error`` and ``tolerance`` (dicts by quantity),
        ``passed`` and ``weights``. The errors of position embeddings are absolute. ``passed`` is
        True if no error exceeds its tolerance. In ``weights``, ``taken`` is the number of
        parameters from ``weights_path``, and ``of`` is the number of all parameters. The key
        ``left_over`` of ``weights`` lists the names of the unused arrays in ``weights_path``.

    Raises:
        UserError: A file cannot be read, or does not match the network.
    """
    meta, file = read(path)
    check_arrays(path, meta, file)
    origin = f"--reference={path}"
    given: dict[str, np.ndarray] = {}
    if weights_path:
        origin += f" with --weights={weights_path}"
        given, *_, notes = read_contents(epath.Path(weights_path))
        for note in notes:
            logging.warning("%s: %s", weights_path, note)
    # The fixed positions of the encoder are not taken, since another image size has another grid.
    taken = {name for name in given if f"param/{name}" in file and name != "pos_embed"}
    file |= {f"param/{name}": given[name] for name in taken}
    config = config_of(path, meta, file, "float64" if x64 else "float32")
    step = make_step(config)
    like = nnx.to_pure_dict(nnx.state(abstract_network(config), nnx.Param))
    try:
        names = [entry.name for entry in entries(like)]
    except KeyError as error:
        raise UserError(
            f"--reference={path}: the network that the file describes has the parameter {error}, "
            "which has no name in MAE's layout"
        ) from error
    weights = {
        name.removeprefix("param/"): a for name, a in file.items() if name.startswith("param/")
    }
    try:
        if given:
            refuse_unused(given, names)
        if "pos_embed" in given:
            grid_of_positions(given["pos_embed"], config.model.width)
        refuse_unknown(weights, names)
        dtype = config.model.dtype
        parameters = jax.tree.map(lambda a: jnp.asarray(a, dtype), from_torch(weights, like))
        # The file's rows are ordered by view, those of can_jax by image.
        order = np.arange(len(file["in/sigma"])).reshape(meta["views"], -1).T.reshape(-1)
        statistics = statistics_of(config, file)
        quantities = compute(step, parameters, statistics, inputs_of(config, file, order))
        worst = position_errors(config, file) | errors(quantities, reference_values(file, order))
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    limits = {quantity: tolerance(quantity, x64) for quantity in worst}
    passed = all(error <= limits[quantity] for quantity, error in worst.items())
    return {
        "max_relative_error": worst,
        "tolerance": limits,
        "passed": passed,
        "weights": {
            "taken": len(taken.intersection(names)),
            "of": len(names),
            "left_over": sorted(given.keys() - taken),
        },
    }
