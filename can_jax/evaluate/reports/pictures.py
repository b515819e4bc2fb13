"""The pictures of a report: nearest neighbors, maps of the embedding and of patch tokens, and
reconstructions."""

import io

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from can_jax.data.evaluation.examples import EvaluationSet
from can_jax.distributed.mesh import replicated
from can_jax.evaluate.page import Html
from can_jax.evaluate.split_features import Split
from can_jax.evaluate.task import EvalContext
from can_jax.features.embedding_map import embedding_map
from can_jax.features.knn import nearest
from can_jax.features.pca_map import pca_colors
from can_jax.models.can import grid_of
from can_jax.monitoring.figures import figures_by_step

QUERIES, NEIGHBORS, MAPPED = 8, 7, 800
SIDE = 72  # The side of an image in the grid, in pixels.


def images_of(
    context: EvalContext, split: Split, rows: Int[np.ndarray, " chosen"]
) -> UInt8[np.ndarray, "chosen height width channels"]:
    """Return images of a split as center crops of the encoder's input size."""
    config = context.subject.config
    return EvaluationSet(config, split.source, 0, labeled=False, only=split.indices[rows]).images()


def tile(image: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    """Return an image as RGB, resized to `SIDE` x `SIDE` pixels."""
    pixels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def neighbor_grid(context: EvalContext, bank: Split, test: Split) -> bytes:
    """Draw test images with their nearest training images beside them, and return PNG bytes.

    A neighbor has a green frame if its class is that of the test image, and a red frame otherwise.
    If the test image has no label, the frames are gray. If ``bank`` and ``test`` are the same
    split, an image is not its own neighbor.

    Args:
        context: The evaluation context: configuration, model and data.
        bank: The split in which neighbors are searched.
        test: The split of the test images; up to `QUERIES` evenly spaced images are shown.
    """
    queries = np.linspace(0, len(test) - 1, min(QUERIES, len(test))).astype(int)
    searches_itself = bank is test
    count = NEIGHBORS + 1 if searches_itself else NEIGHBORS
    indices = nearest(context.select(bank), context.select(test)[queries], count).indices
    if searches_itself:  # A copy of the image can come before the image itself.
        others = [row[row != query] for row, query in zip(indices, queries, strict=True)]
        indices = np.stack([row[: indices.shape[1] - 1] for row in others])
    left = images_of(context, test, queries)
    # The images are loaded in one call, because opening the pipeline takes a second.
    right = images_of(context, bank, indices.reshape(-1))
    columns = indices.shape[1]
    gap, frame = 6, 3
    cell = SIDE + 2 * frame + gap
    sheet = Image.new("RGB", (cell * (columns + 1) + 12, cell * len(queries)), "white")
    for row, (query, neighbors) in enumerate(zip(queries, indices, strict=True)):
        sheet.paste(tile(left[row]), (frame, row * cell + frame))
        for column, image in enumerate(right[row * columns : (row + 1) * columns]):
            label = test.labels[query]
            color = "#3ca951" if bank.labels[neighbors[column]] == label else "#e0442c"
            color = color if label >= 0 else "#9498a0"
            edge = Image.new("RGB", (SIDE + 2 * frame,) * 2, color)
            edge.paste(tile(image), (frame, frame))
            sheet.paste(edge, (cell * (column + 1) + 12, row * cell))
    return png_of(sheet)


def pca_maps(context: EvalContext, split: Split) -> bytes:
    """Draw images with color maps of their patch tokens below them, and return PNG bytes.

    The colors are the first three principal components of the tokens of all shown images.
    """
    chosen = np.linspace(0, len(split) - 1, min(QUERIES, len(split))).astype(int)
    images = images_of(context, split, chosen)
    with jax.set_mesh(context.mesh):
        compute = jax.jit(context.subject.tokens, out_shardings=replicated(context.mesh))
        tokens = np.asarray(compute(context.subject.parameters, images), np.float32)[:, 1:]
    grid = grid_of(context.subject.config)
    colors = (255 * pca_colors(tokens)).astype(np.uint8).reshape(len(images), *grid, -1)
    cell = SIDE + 6
    sheet = Image.new("RGB", (cell * len(images), 2 * cell), "white")
    for column, (image, color) in enumerate(zip(images, colors, strict=True)):
        sheet.paste(tile(image), (column * cell, 0))
        patches = Image.fromarray(color).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        sheet.paste(patches, (column * cell, cell))
    return png_of(sheet)


def png_of(sheet: Image.Image) -> bytes:
    """Return an image as PNG bytes."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def map_chart(context: EvalContext, test: Split) -> Html:
    """Plot a 2D map of the features of up to `MAPPED` test examples, colored by class."""
    from can_jax.evaluate.reports.charts import scatter  # importing matplotlib takes 0.7 s

    chosen = np.linspace(0, len(test) - 1, min(MAPPED, len(test))).astype(int)
    points = embedding_map(context.select(test)[chosen])
    return scatter(points, test.labels[chosen], test.classes)


def newest_panel(workdir: epath.Path, step: int | None = None) -> bytes | None:
    """Return the PNG bytes of a run's latest reconstruction figure, or None if the run has no such
    figure.

    If ``step`` is given, figures of later steps are ignored.
    """
    figures = figures_by_step(workdir)
    steps = [at for at in figures if step is None or at <= step]
    return figures[steps[-1]].read_bytes() if steps else None
