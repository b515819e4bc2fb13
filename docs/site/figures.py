"""Make the figures of the documentation from a run of the recipe `quickstart`.

    python docs/site/figures.py --run=runs/quickstart [--collapsed=runs/collapsed]

The run is made by

    python -m can_jax.main --config=quickstart --workdir=runs/quickstart \
        --config.log_every_steps=25 --config.model.patch_embed=auto
    python -m can_jax.main --config=quickstart --workdir=runs/collapsed --config.total_steps=150 \
        --config.log_every_steps=5 --config.probe.every_steps=0 --config.figures.every_steps=0 \
        --config.optimizer.learning_rate=1.0 --config.model.patch_embed=auto
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "gallery"
CURVES = (
    "loss/contrastive", "loss/reconstruction", "denoising/explained", "embedding/std",
    "embedding/effective_rank", "probe/knn",
)  # fmt: skip
SIGNS = (
    "loss/contrastive", "embedding/std", "embedding/effective_rank",
    "contrastive/positive_similarity", "contrastive/negative_similarity", "contrastive/top1",
)  # fmt: skip


def main() -> None:
    """Write all figures to docs/gallery."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--collapsed", type=Path)
    options = parser.parse_args()
    TARGET.mkdir(exist_ok=True)
    curves(options.run, CURVES, "healthy.svg")
    if options.collapsed:
        curves(options.collapsed, SIGNS, "collapse.svg")
    figures = sorted((options.run / "figures").glob("*.png"))
    shrink(figures[0], "predictions_early.png")
    shrink(figures[-1], "predictions.png")
    views, inputs = step_pictures()
    save_png(views, "step_views.png")
    save_png(inputs, "step_inputs.png")


def curves(run: Path, metrics: tuple[str, ...], name: str) -> None:
    """Draw six metrics of a run, with dotted lines where it resumed."""
    from etils import epath

    from can_jax.evaluate.reports.charts import chart_style
    from can_jax.evaluate.reports.run_record import read_record

    record = read_record(epath.Path(run), run.name)
    with chart_style():
        figure, axes = plt.subplots(2, 3, figsize=(9.6, 4.6), layout="constrained")
        for axis, metric in zip(axes.flat, metrics, strict=True):
            x, y = zip(*record.series[metric], strict=True)
            axis.plot(x, y, color="#4269d0", lw=1.6, marker="o" if len(x) < 10 else "", ms=3.5)
            if metric == "probe/knn":
                axis.axhline(
                    record.series["probe/knn_pixels"][0][1], color="#4269d0", lw=1, ls="--"
                )
            for start in record.starts[1:]:
                axis.axvline(start["step"], color="#c8ced5", ls=":")
            axis.set_title(metric, loc="left", fontsize=10, fontweight="bold")
            axis.set_xlabel("step")
        figure.savefig(TARGET / name, metadata={"Date": None})
    plt.close(figure)


def shrink(path: Path, name: str) -> None:
    """Copy a figure of a run with a palette of 256 colors, at most 900 pixels wide."""
    image = Image.open(path).convert("RGB")
    if image.width > 900:
        image = image.resize((900, round(image.height * 900 / image.width)))
    image.quantize(256).save(TARGET / name, optimize=True)


def save_png(figure: Any, name: str) -> None:
    """Write a figure with a palette of 256 colors."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    Image.open(buffer).convert("RGB").quantize(256).save(TARGET / name, optimize=True)


def step_pictures() -> tuple[Any, Any]:
    """Return the figures of the views and of the inputs of a train step on one image."""
    from can_jax.augment.photometric import Photometric, denormalize
    from can_jax.config import resolve
    from can_jax.config.resolve import load_recipe
    from can_jax.data.pipeline.batch import Batch
    from can_jax.data.sources.synthetic_shapes import open_shapes
    from can_jax.models.can import grid_of
    from can_jax.models.masking import hidden_mask, unpatchify, visible_count
    from can_jax.train.losses import prepare

    config = resolve(load_recipe(str(ROOT / "configs/quickstart.py"), "quickstart"))
    image = open_shapes(8, config.data.image_size, 3, "test").images[3]
    crops = np.stack([image, crop(image, 6, 4, 28), crop(image, 2, 10, 28)])[1:]
    batch = Batch(crops[None], np.arange(1, dtype=np.uint32), np.full(1, -1, np.int32))
    photometric = Photometric.from_settings(config.augment.to_dict())
    inputs = prepare(config, batch, np.int32(0), photometric)
    count = visible_count(inputs.shuffle.shape[1], config.model.mask_ratio)
    hidden = hidden_mask(inputs.shuffle, count)[..., None]

    def picture(patches: Any) -> Any:
        pixels = unpatchify(patches, grid_of(config), config.model.patch_size)
        return np.clip(denormalize(pixels, config.augment.mean, config.augment.std), 0, 1)

    noise = inputs.noise.scaled
    clean = picture(inputs.clean)
    views = row(("the image", image), ("view 1", clean[0]), ("view 2", clean[1]))
    seen = np.where(hidden, np.nan, inputs.noisy)
    columns = {
        "view": clean,
        "noise (10 times)": picture(10 * noise),
        "what the encoder sees": np.nan_to_num(picture(seen), nan=0.55),
        "target: masked patches": np.nan_to_num(
            picture(np.where(hidden, inputs.clean, np.nan)), nan=0.55
        ),
        "target: noise (10 times)": np.nan_to_num(
            picture(np.where(hidden, np.nan, 10 * noise)), nan=0.55
        ),
    }
    figure, axes = plt.subplots(2, len(columns), figsize=(9.6, 4.2), layout="constrained")
    for column, (title, pictures) in enumerate(columns.items()):
        for view in range(2):
            axes[view][column].imshow(pictures[view])
            axes[view][column].set(xticks=[], yticks=[])
        axes[0][column].set_title(title, fontsize=9)
    for view in range(2):
        axes[view][0].set_ylabel(
            f"view {view + 1}, σ = {float(inputs.noise.sigma[view]):.3f}", fontsize=9
        )
    return views, figure


def crop(image: Any, top: int, left: int, side: int) -> Any:
    """Return a square crop of an image at the image's own size."""
    part = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(part.resize(image.shape[1::-1], Image.Resampling.BILINEAR))


def row(*pictures: tuple[str, Any]) -> Any:
    """Return a figure of pictures beside each other."""
    figure, axes = plt.subplots(
        1, len(pictures), figsize=(2.2 * len(pictures), 2.4), layout="constrained"
    )
    for axis, (title, pixels) in zip(axes, pictures, strict=True):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
