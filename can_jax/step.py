"""The train state, and the one jitted step from bytes to the updated state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.augment.photometric import Photometric, augment, normalize, to_float
from can_jax.data.batch import Batch
from can_jax.model import can
from can_jax.model.masking import (
    gather_patches,
    hidden_mask,
    patchify,
    random_shuffle,
    visible_count,
)
from can_jax.objectives.contrastive import normalize as unit_length
from can_jax.optimizer import make_optimizer
from can_jax.parallel.mesh import batch_sharding, pin_rows, replicated
from can_jax.parallel.rules import shardings

Tree = Any
Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a run is, between two steps. What to read next follows from ``step`` alone.

    Attributes:
        step: steps taken, those with skipped updates included.
        parameters: every trained array, as a nested dict.
        batch_stats: BatchNorm's running statistics.
        optimizer: the optimizer's state.
        skipped: how many updates were left out since their loss or gradient was not finite.

    The leaves are arrays, or what stands for them: shapes, or shardings.
    """

    step: Tree
    parameters: Tree
    batch_stats: Tree
    optimizer: Tree
    skipped: Tree


class Noise(NamedTuple):
    """Noise of each row's own strength."""

    sigma: Float[Array, " rows"]
    unit: Float[Array, "rows patches pixels"]  # standard normal

    @property
    def scaled(self) -> Float[Array, "rows patches pixels"]:
        """What is added to the input, in normalised pixel units."""
        return self.sigma[:, None, None] * self.unit


class Inputs(NamedTuple):
    """What the network and its losses are given, after augmentation, noise and masks."""

    clean: Float[Array, "rows patches pixels"]
    noise: Noise | None
    shuffle: Int[Array, "rows patches"]
    labels: Int[Array, " images"]

    @property
    def noisy(self) -> Float[Array, "rows patches pixels"]:
        """The clean patches plus their noise."""
        return self.clean if self.noise is None else self.clean + self.noise.scaled


def heads(config: ConfigDict) -> frozenset[str]:
    """The heads that the objectives with a weight read, and no others."""
    needed: set[str] = set()
    for objective in objectives.active(config.objective.to_dict()).values():
        needed |= objective.heads
    if not (config.noise.sigma_max and config.noise.embed_level):
        needed.discard("noise_level")
    return frozenset(needed)


def grid_of(config: ConfigDict) -> tuple[int, int]:
    """Patches along (height, width)."""
    height, width = config.data.image_size
    return height // config.model.patch_size, width // config.model.patch_size


def random_streams(seed: int) -> Key[Array, " 2"]:
    """The key of the initial parameters, and the key from which every step's follows."""
    return jax.random.split(jax.random.key(seed))


def row_keys(seed: int, step: Int[Array, ""], batch: Batch) -> Key[Array, " rows"]:
    """One key a row, from (seed, step, position, view): the same on any mesh, after any resume."""
    views = batch.views.shape[1]
    key = jax.random.fold_in(random_streams(seed)[1], step)
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.position)
    by_view = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(by_view, (0, None))(image_keys, jnp.arange(views)).reshape(-1)


def prepare(
    config: ConfigDict, batch: Batch, step: Int[Array, ""], settings: Photometric
) -> Inputs:
    """Bytes to inputs: augment, normalise, cut into patches, draw noise and masks.

    Rows are ordered by image, then view, so that an image's views stay on its device.
    """
    rows = to_float(batch.views).reshape(-1, *batch.views.shape[2:])
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(row_keys(config.seed, step, batch))
    augment_keys, sigma_keys, noise_keys, mask_keys = (keys[:, i] for i in range(4))
    views = augment(pin_rows(rows), augment_keys, settings)
    views = normalize(views, config.augment.mean, config.augment.std)
    clean = pin_rows(patchify(views, config.model.patch_size))

    noise = None
    if config.noise.sigma_max:
        strength = jax.vmap(lambda key: jax.random.uniform(key, maxval=config.noise.sigma_max))
        normal = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))
        noise = Noise(strength(sigma_keys), normal(noise_keys))
    if config.model.mask_ratio:
        shuffle = random_shuffle(mask_keys, clean.shape[1])
    else:
        shuffle = jnp.broadcast_to(jnp.arange(clean.shape[1]), clean.shape[:2])
    return Inputs(clean, noise, shuffle, batch.label)


def forward(config: ConfigDict, model: can.CAN, inputs: Inputs, *, train: bool) -> can.Forward:
    """Show the network the visible patches of every row."""
    patches = inputs.noisy
    if config.model.mask_ratio:
        visible = visible_count(patches.shape[1], config.model.mask_ratio)
        patches = gather_patches(patches, inputs.shuffle[:, :visible])
    sigma = None if inputs.noise is None else inputs.noise.sigma
    return model(pin_rows(patches), inputs.shuffle, sigma, grid=grid_of(config), train=train)


def losses(
    config: ConfigDict, outputs: can.Forward, inputs: Inputs
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted total of one step, and the metrics of its objectives."""
    visible = outputs.latent.shape[1] - 1
    projection = outputs.projection
    if projection is not None:
        projection = projection.reshape(inputs.labels.shape[0], -1, projection.shape[-1])
    noise = None
    if inputs.noise is not None:
        noise = inputs.noise.scaled if config.noise.target == "scaled" else inputs.noise.unit
    arrays = objectives.Arrays(
        projection=projection,
        prediction=outputs.prediction,
        clean=inputs.clean,
        noise=noise,
        hidden=hidden_mask(inputs.shuffle, visible),
        labels=inputs.labels if config.objective.contrastive.supervised else None,
    )
    return objectives.total_loss(arrays, config.objective.to_dict())


def embedding_metrics(pooled: Float[Array, "rows width"]) -> Metrics:
    """Signs of collapse, on the pooled embedding at length 1.

    ``embedding/std`` is the deviation over the batch, averaged over the width and scaled so that
    1 is an even spread over the sphere and 0 a single point. ``embedding/gram`` (width, width) is
    what `can_jax.observe.metrics.effective_rank` reads.
    """
    unit = unit_length(pooled.astype(jnp.float32))
    rows, width = unit.shape
    return {
        "embedding/std": unit.std(axis=0).mean() * width**0.5,
        "embedding/gram": unit.T @ unit / rows,
    }


def select(condition: Array, new: Tree, old: Tree) -> Tree:
    """``new`` where the condition holds, else ``old``, for every leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


@dataclasses.dataclass(frozen=True)
class Step:
    """The network's structure and the optimizer: what the train state has no arrays for."""

    config: ConfigDict
    network: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule

    def model(self, state: TrainState) -> can.CAN:
        """The network with a state's parameters."""
        return nnx.merge(self.network, state.parameters, state.batch_stats, copy=True)

    def loss(
        self, parameters: Tree, batch_stats: Tree, inputs: Inputs
    ) -> tuple[Float[Array, ""], tuple[Metrics, Tree]]:
        """The total loss of a batch, its metrics, and BatchNorm's new statistics."""
        model = nnx.merge(self.network, parameters, batch_stats, copy=True)
        outputs = forward(self.config, model, inputs, train=True)
        total, metrics = losses(self.config, outputs, inputs)
        statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return total, (metrics | embedding_metrics(outputs.pooled), statistics)

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step. An update whose loss or gradient is not finite is skipped and counted."""
        settings = Photometric.from_settings(self.config.augment.to_dict())
        inputs = prepare(self.config, batch, state.step, settings)
        gradient = jax.value_and_grad(self.loss, has_aux=True)
        (total, (metrics, batch_stats)), gradients = gradient(
            state.parameters, state.batch_stats, inputs
        )
        rate = self.schedule(state.step)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        updated = optax.apply_updates(state.parameters, updates)

        gradient_norm = optax.global_norm(gradients)
        finite = jnp.isfinite(total) & jnp.isfinite(gradient_norm)
        new = TrainState(
            step=state.step + 1,
            parameters=select(finite, updated, state.parameters),
            batch_stats=select(finite, batch_stats, state.batch_stats),
            optimizer=select(finite, optimizer, state.optimizer),
            skipped=state.skipped + ~finite,
        )
        metrics |= {
            "learning_rate": rate,
            "grad_norm": gradient_norm,
            "param_norm": optax.global_norm(new.parameters),
            "skipped_steps": new.skipped,
        }
        return new, metrics

    def features(self, state: TrainState, images: Array) -> Float[Array, "images width"]:
        """The mean patch token of whole, unaugmented images given as bytes."""
        augment = self.config.augment
        pixels = normalize(to_float(images), augment.mean, augment.std)
        return can.pool(self.model(state).encode(pixels))


def abstract_network(config: ConfigDict) -> can.CAN:
    """The network of a configuration, with shapes in place of arrays."""
    return nnx.eval_shape(lambda: can.build(config, heads(config), nnx.Rngs(0)))


def make_step(config: ConfigDict, schedule: optax.Schedule) -> Step:
    """The step of a validated configuration. No array is allocated."""
    network = nnx.graphdef(abstract_network(config))
    return Step(config, network, make_optimizer(config), schedule)


def initialize(step: Step, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """A fresh train state, every array created on the devices where it will lie.

    Returns:
        The state, and the same tree of `jax.ShapeDtypeStruct` with shardings.
    """

    def create() -> TrainState:
        rngs = nnx.Rngs(random_streams(step.config.seed)[0])
        network = can.build(step.config, heads(step.config), rngs)
        parameters = nnx.to_pure_dict(nnx.state(network, nnx.Param))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            batch_stats=nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)),
            optimizer=step.optimizer.init(parameters),
            skipped=jnp.zeros((), jnp.int32),
        )

    shapes = jax.eval_shape(create)
    places = shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
    return jax.jit(create, out_shardings=places)(), abstract


def compile_train_step(step: Step, state: TrainState, batch: Batch, mesh: Mesh) -> Callable:
    """The compiled step: `(state, batch) -> (state, metrics)`. The state's buffers are donated.

    Args:
        step: the step.
        state, batch: the arrays, or their shapes, with shardings.
        mesh: the mesh of these shardings.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    with jax.set_mesh(mesh):
        jitted = jax.jit(
            step.train,
            donate_argnums=0,
            in_shardings=(places, batch_sharding(mesh)),
            out_shardings=(places, replicated(mesh)),
        )
        return jitted.lower(state, batch).compile()
