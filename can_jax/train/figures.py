"""The figure of a step: images, network input, reconstruction, noise and predicted noise."""

import io
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from can_jax import objectives
from can_jax.augment.photometric import Photometric, denormalize
from can_jax.data.pipeline.batch import Batch
from can_jax.models.can import grid_of
from can_jax.models.masking import hidden_mask, unpatchify, visible_count
from can_jax.objectives.reconstruction import patch_statistics
from can_jax.train.losses import forward, prepare
from can_jax.train.step import Step, TrainState

# Noise values are drawn in black or white if they exceed this many times `noise.sigma_max`.
NOISE_CONTRAST = 3.0


class Panel(NamedTuple):
    """The images of a figure, with values in [0, 1].

    Attributes:
        clean: The images without augmentation and noise.
        shown: The noisy visible patches that the encoder receives, with hidden patches in the mean
            color.
        reconstruction: The images with their hidden patches replaced by the predictions; None if
            only the denoising objective trains the predictions.
        noise: The noise of the visible patches; zero noise and hidden patches are gray. Without the
            denoising objective, ``noise`` is None.
        predicted_noise: The predicted noise, drawn on the same scale as ``noise``; None without the
            denoising objective.
        sigma: The noise level of each image, as a standard deviation; None without noise.
    """

    clean: Float[Array, "rows height width channels"]
    shown: Float[Array, "rows height width channels"]
    reconstruction: Float[Array, "rows height width channels"] | None
    noise: Float[Array, "rows height width channels"] | None
    predicted_noise: Float[Array, "rows height width channels"] | None
    sigma: Float[Array, " rows"] | None


def make_panel(
    step: Step, state: TrainState, images: UInt8[Array, "images height width channels"]
) -> Panel:
    """Run the network on unaugmented images, and return the images of the figure.

    The masks and the noise are the same in every call. If the reconstruction target is normalized
    per patch, predictions are denormalized with the mean and standard deviation of the true
    patches.
    """
    config = step.config
    count = images.shape[0]
    batch = Batch(images[:, None], jnp.arange(count, dtype=jnp.uint32), jnp.full(count, -1))
    inputs = prepare(config, batch, jnp.zeros((), jnp.int32), Photometric())
    outputs = forward(config, step.model(state), inputs)
    visible = visible_count(inputs.shuffle.shape[1], config.model.mask_ratio)
    hidden = hidden_mask(inputs.shuffle, visible)[..., None]

    def picture(patches: Array) -> Array:
        pixels = unpatchify(patches, grid_of(config), config.model.patch_size)
        return jnp.clip(denormalize(pixels, config.augment.mean, config.augment.std), 0, 1)

    def noise_picture(patches: Array) -> Array:
        scale = 2 * NOISE_CONTRAST * config.noise.sigma_max
        gray = jnp.clip(jnp.where(hidden, 0.0, patches) / scale + 0.5, 0, 1)
        return unpatchify(gray, grid_of(config), config.model.patch_size)

    assert outputs.prediction is not None
    prediction = outputs.prediction.astype(jnp.float32)
    reconstruction = noise = predicted = None
    active = objectives.active(config.objective.to_dict())
    if any("prediction" in active[name].reads for name in active.keys() - {"denoising"}):
        filled = prediction
        if config.objective.reconstruction.normalize:
            mean, deviation = patch_statistics(inputs.clean)
            filled = prediction * deviation + mean
        reconstruction = picture(jnp.where(hidden, filled, inputs.clean))
    if config.objective.denoising.weight and inputs.noise is not None:
        noise = noise_picture(inputs.noise.scaled)
        _, scale = inputs.noise.target(config.noise.target, config.noise.sigma_max)
        predicted = noise_picture(scale[:, None, None] * prediction)
    return Panel(
        clean=picture(inputs.clean),
        shown=picture(jnp.where(hidden, 0.0, inputs.noisy)),
        reconstruction=reconstruction,
        noise=noise,
        predicted_noise=predicted,
        sigma=None if inputs.noise is None else inputs.noise.sigma,
    )


def draw(panel: Panel, title: str) -> bytes:
    """Draw a panel as a PNG, with one row per image and one column for each kind of image in
    `Panel`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = {
        "image": panel.clean,
        "visible, noisy": panel.shown,
        "reconstruction": panel.reconstruction,
        "noise": panel.noise,
        "predicted noise": panel.predicted_noise,
    }
    drawn = {name: np.asarray(array) for name, array in columns.items() if array is not None}
    rows, height, width = panel.clean.shape[:3]
    cell = 1.7
    figure = Figure(
        (cell * len(drawn) + 0.5, cell * height / width * rows + 0.7),
        dpi=110,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, len(drawn), squeeze=False)
    for row in range(rows):
        for axis, (name, pictures) in zip(axes[row], drawn.items(), strict=True):
            # The first three channels are drawn as RGB; with fewer, the first is drawn in gray.
            pixels = pictures[row][..., :3] if pictures.shape[-1] >= 3 else pictures[row][..., 0]
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(name, fontsize=9)
        if panel.sigma is not None:
            axes[row][0].set_ylabel(f"σ {float(panel.sigma[row]):.3f}", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def pixels_of(png: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a PNG file to a uint8 RGB array."""
    from matplotlib.image import imread

    return (imread(io.BytesIO(png))[..., :3] * 255).astype(np.uint8)
