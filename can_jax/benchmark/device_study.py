"""Training of many configurations on one device, with all images in the device's memory.

A `Cell` is one configuration that is trained in several runs, which differ in their seed or
learning rate. The runs train in parallel in one `jax.vmap` program, so that even a small network
occupies an accelerator. Each epoch is one call of a compiled loop over
`can_jax.train.step.Step.train`. The host only computes the order of examples.

`can_jax.augment.device_crops` crops on the device. The train step is that of `can-jax train`.
"""

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from can_jax.augment.device_crops import random_crops
from can_jax.benchmark.device_cells import Cell
from can_jax.data.pipeline.batch import Batch
from can_jax.data.pipeline.order import Order
from can_jax.distributed.sharding_rules import named_leaves
from can_jax.features.knn import knn_accuracy
from can_jax.models.backbones import encoder_size
from can_jax.models.can import grid_of
from can_jax.models.encoder import positions_with_class
from can_jax.models.patch_embed import embedding_kind, fold
from can_jax.monitoring.scalars import to_scalars
from can_jax.objectives.denoising import linear_bound
from can_jax.optimizers.optimizer import peak_learning_rate
from can_jax.optimizers.schedules import learning_rate_schedule
from can_jax.train.patch_statistics import (
    Moments,
    batches_to_measure,
    moments_of,
    second_moment,
    whitening_of,
    with_map,
)
from can_jax.train.run_length import make_run_length
from can_jax.train.step import QUICKLY, Step, TrainState, make_step
from can_jax.utils.archives import read_npz
from can_jax.utils.files import replacing
from can_jax.weights.torch_layout import to_torch

CROPS = 0x43524F50  # the stream of random numbers from which crops are drawn
FEATURE_BATCH = 500  # images encoded at a time
Metrics = dict[str, float]


class Training:
    """A training job that trains all runs of a `Cell` in parallel.

    Args:
        cell: The cell to train: its configuration, runs and images.
        placed: The training images and their labels as arrays on the device.

    Attributes:
        linear_bound: For each run, the fraction of the noise energy explained by the best linear
            denoiser of a patch; None if `start` has not measured it.
    """

    linear_bound: list[float] | None = None

    def __init__(self, cell: Cell, placed: tuple[Array, Array]):
        self.cell, config = cell, cell.config
        times = make_run_length(config, len(cell.images.train))
        rate = learning_rate_schedule(
            peak_learning_rate(config), times.warmup, times.total, config.schedule
        )
        self._step = make_step(config, rate)
        self._images = placed
        self._seeds = jnp.asarray(cell.seeds, jnp.int32)
        # For each run, the factor by which the learning-rate schedule is multiplied.
        factors = [value / config.optimizer.learning_rate for value in cell.learning_rates]
        self._runs = (self._seeds, jnp.asarray(factors, jnp.float32))
        self.epoch = 0

    def compile(self) -> "Training":
        """Compile all programs of this cell, and return ``self``.

        A thread can call this method while another cell trains.
        """
        cell, seeds = self.cell, self._seeds
        initialize = jax.jit(self._fresh, compiler_options=QUICKLY).lower(seeds)
        states = initialize.out_info
        examples = (len(seeds), cell.config.batch_size)
        batch = tuple(jax.ShapeDtypeStruct(examples, kind) for kind in (jnp.uint32, jnp.int32))
        batches = tuple(
            jax.ShapeDtypeStruct((cell.epoch_steps, *leaf.shape), leaf.dtype) for leaf in batch
        )
        parts = jax.ShapeDtypeStruct((FEATURE_BATCH, *cell.images.test.shape[1:]), jnp.uint8)
        advance = jax.jit(self._advance, donate_argnums=0)
        self._initialize = initialize.compile()
        self._advanced = advance.lower(states, self._images, self._runs, *batches).compile()
        self._features = jax.jit(self._features_of).lower(states, parts).compile()
        if self._measures:
            measure = jax.jit(jax.vmap(self._second_moment, in_axes=(None, 0, 0, 0)))
            self._second_moments = measure.lower(self._images, seeds, *batch).compile()
        return self

    @property
    def _measures(self) -> bool:
        """Whether the moments of image patches are measured before training."""
        config = self.cell.config
        return embedding_kind(config) == "whitened" or bool(config.noise.linear_bound)

    def start(self) -> None:
        """Initialize the train state of each run, and measure patch statistics if required."""
        self.states = self._initialize(self._seeds)
        config = self.cell.config
        self.linear_bound = None
        if self._measures:
            moments = self._moments()
            if embedding_kind(config) == "whitened":
                maps = [whitening_of(config, each) for each in moments]
                stacked = {name: np.stack([m[name] for m in maps]) for name in maps[0]}
                self.states.batch_stats = with_map(self.states.batch_stats, stacked)
            if config.noise.sigma_max:
                variances = [np.linalg.eigvalsh(each.covariance) for each in moments]
                self.linear_bound = [linear_bound(v, config.noise.sigma_max) for v in variances]
        self.epoch = 0

    def train(self, epochs: int) -> Iterator[list[Metrics]]:
        """Train up to epoch ``epochs``; after each epoch, yield the mean metrics of each run.

        While the device trains, the host computes the order of examples in the next epoch.
        """
        order = self._order(self.epoch)
        while self.epoch < epochs:
            self.states, metrics = self._advanced(self.states, self._images, self._runs, *order)
            self.epoch += 1
            if self.epoch < epochs:
                order = self._order(self.epoch)
            means = jax.device_get(metrics)
            yield [
                to_scalars({name: values[i] for name, values in means.items()})
                for i in range(len(self.cell.seeds))
            ]

    def accuracies(self) -> list[float]:
        """Return the kNN accuracy on the test images for each run, in percent."""
        images, settings = self.cell.images, self.cell.config.probe
        bank, queries = (self._encoded(split) for split in (images.train, images.test))
        return [
            knn_accuracy(
                bank[i], images.train_labels, queries[i], images.test_labels,
                k=settings.k, temperature=settings.temperature,
            )
            for i in range(len(self._seeds))
        ]  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write the train state of each run to its own npz file in a folder."""
        stacked = named_leaves(jax.device_get(self.states))
        for i, path in enumerate(self._state_files(folder)):
            arrays = {name: leaf[i] for name, leaf in stacked.items()}
            arrays["key"] = np.array(self.cell.key)
            with replacing(path) as file, file.open("wb") as stream:
                np.savez(stream, epoch=np.int64(self.epoch), **arrays)

    def restore(self, folder: Path) -> bool:
        """Restore the train states that `save` wrote. Return False if ``folder`` has no train
        states of this cell."""
        files = self._state_files(folder)
        if not all(file.exists() for file in files):
            return False
        parts = [read_npz(file) for file in files]
        epochs = {int(part["epoch"]) for part in parts}
        if {str(part["key"]) for part in parts} != {self.cell.key} or len(epochs) > 1:
            return False
        abstract = jax.eval_shape(self._fresh, self._seeds)
        leaves = [np.stack([part[name] for part in parts]) for name in named_leaves(abstract)]
        self.states = jax.device_put(jax.tree.unflatten(jax.tree.structure(abstract), leaves))
        self.epoch = epochs.pop()
        return True

    def save_encoders(self, folder: Path) -> None:
        """Write each run's encoder to an npz file named by seed, with MAE's parameter names.

        If several runs have the same seed, the file holds the encoder of the last of these runs.

        To read a file, pass the configured values of ``heads``, ``mean`` and ``std`` to
        `can_jax.load`.
        """
        config, all_states = self.cell.config, jax.device_get(self.states)
        positions = positions_with_class(grid_of(config), encoder_size(config.model).width)
        for i, seed in enumerate(self.cell.seeds):
            states = jax.tree.map(operator.itemgetter(i), all_states)
            parameters, _ = fold(states.parameters, states.batch_stats)
            encoder = to_torch({"encoder": parameters["encoder"]}, config.model.patch_size)
            arrays: dict[str, Any] = {"pos_embed": positions[None], **encoder}
            path = self._file(folder, f"encoder-{seed}")
            with replacing(path) as file, file.open("wb") as stream:
                np.savez(stream, **arrays)

    def discard(self, folder: Path) -> None:
        """Delete the train states that `save` wrote for this cell."""
        for path in self._state_files(folder):
            path.unlink(missing_ok=True)

    def _state_files(self, folder: Path) -> list[Path]:
        """Return the path of each run's train state, named by index because seeds can repeat."""
        return [self._file(folder, f"run-{i}") for i in range(len(self.cell.seeds))]

    def _file(self, folder: Path, name: str) -> Path:
        words = "".join(c if c.isalnum() else "_" for c in self.cell.name)
        return folder / f"{words}-{name}.npz"

    def _seeded(self, seed: Array) -> Step:
        """Return a copy of the train step with the seed ``seed``, which can be a traced value."""
        config = ConfigDict(self._step.config.copy_and_resolve_references())
        with config.ignore_type():
            config.seed = seed
        return dataclasses.replace(self._step, config=config)

    def _run(self, seed: Array, factor: Array) -> Step:
        """Return the train step of a run, with the learning-rate schedule multiplied by
        ``factor``."""
        step = self._seeded(seed)
        return dataclasses.replace(step, schedule=lambda at: factor * step.schedule(at))

    def _fresh(self, seeds: Int[Array, " seeds"]) -> TrainState:
        return jax.vmap(lambda seed: self._seeded(seed).fresh())(seeds)

    def _moments(self) -> list[Moments]:
        """Return, for each run, the mean and covariance of image patches in the first batches."""
        config = self.cell.config
        count = batches_to_measure(config, len(self.cell.images.train))
        positions, examples = self._order(0)
        batches = list(zip(positions, examples, strict=True))[:count]
        moments = [
            np.asarray(self._second_moments(self._images, self._seeds, *batch)) for batch in batches
        ]
        images = len(batches) * config.batch_size
        return [moments_of(each, images) for each in np.mean(moments, axis=0)]

    def _second_moment(
        self, images: tuple[Array, Array], seed: Array, position: Array, example: Array
    ) -> Array:
        batch = self._batch(seed, *images, position, example)
        return second_moment(self._seeded(seed).config, batch)

    def _advance(
        self,
        states: TrainState,
        images: tuple[Array, Array],
        runs: tuple[Int[Array, " seeds"], Float[Array, " seeds"]],
        positions: Array,
        examples: Int[Array, "steps seeds batch"],
    ) -> tuple[TrainState, dict[str, Array]]:
        """Train for one epoch, and return the states and the mean metrics of each run."""

        def one(
            run: tuple[Array, Array], state: TrainState, position: Array, example: Array
        ) -> Any:
            batch = self._batch(run[0], *images, position, example)
            return self._run(*run).train(state, batch)

        def step(states: TrainState, batch: tuple[Array, Array]) -> Any:
            return jax.vmap(one)(runs, states, *batch)

        states, metrics = jax.lax.scan(step, states, (positions, examples))
        return states, {name: values.mean(axis=0) for name, values in metrics.items()}

    def _batch(
        self, seed: Array, images: Array, labels: Array, position: Array, example: Array
    ) -> Batch:
        """Return a batch with random crops of the given examples."""
        augment, (height, width) = self.cell.config.augment, self.cell.config.data.image_size
        key = jax.random.fold_in(jax.random.key(seed), CROPS)
        low, high = augment.crop_aspect

        def views(image: Array, position: Array) -> Array:
            return random_crops(
                image, jax.random.fold_in(key, position), augment.views, augment.crop_area,
                (low * width / height, high * width / height), (height, width),
            )  # fmt: skip

        return Batch(jax.vmap(views)(images[example], position), position, labels[example])

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an epoch's positions in the data order, and the example index at each position."""
        steps, batch = self.cell.epoch_steps, self.cell.config.batch_size
        positions = np.arange(epoch * steps * batch, (epoch + 1) * steps * batch)
        sizes = (len(self.cell.images.train),)
        examples = [Order(seed, sizes).examples_at(positions) for seed in self.cell.seeds]

        def by_step(rows: Sequence[np.ndarray]) -> np.ndarray:
            return np.stack(rows).reshape(len(rows), steps, batch).swapaxes(0, 1)

        everywhere = by_step([positions] * len(examples)).astype(np.uint32)
        return everywhere, by_step(examples).astype(np.int32)

    def _features_of(self, states: TrainState, images: Array) -> Float[Array, "seeds images width"]:
        features = jax.vmap(lambda state: self._step.features(state, images))(states)
        return features.astype(jnp.float32)

    def _encoded(self, images: np.ndarray) -> np.ndarray:
        """Return the features of images for each run, of shape (runs, images, width)."""
        padding = np.zeros((-len(images) % FEATURE_BATCH, *images.shape[1:]), np.uint8)
        chunks = np.concatenate([images, padding]).reshape(-1, FEATURE_BATCH, *images.shape[1:])
        features = [np.asarray(self._features(self.states, chunk)) for chunk in chunks]
        return np.concatenate(features, axis=1)[:, : len(images)]
