"""The train state, and the train step that updates it with a batch of uint8 images."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from can_jax import objectives
from can_jax.augment.photometric import normalize, to_float
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.mesh import batch_sharding, replicated
from can_jax.distributed.sharding_rules import shardings, splits_state
from can_jax.models import can
from can_jax.optimizers.average import update_average
from can_jax.optimizers.optimizer import check_patterns, make_optimizer
from can_jax.optimizers.transforms import check_updates, is_bounded
from can_jax.train.collapse import embedding_metrics
from can_jax.train.compute_copy import compute_copy, compute_types, stored_gradients
from can_jax.train.losses import Metrics, StepOutput, Tree, loss_and_gradients
from can_jax.train.microbatches import accumulate_gradients
from can_jax.train.network import abstract_network, heads
from can_jax.train.random_keys import random_streams

LARGEST_RATE = 1e30  # The updates of larger learning rates can overflow.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """The arrays of a training run between two steps.

    A `TrainState` can hold arrays, `jax.ShapeDtypeStruct` or shardings as its leaves.

    Attributes:
        step: The number of steps taken, including those whose update was skipped.
        parameters: The trainable parameters, as a nested dict.
        batch_stats: The variables that are not trained: running statistics of BatchNorm, and the
            fixed map of the patch embedding, if any.
        optimizer: The optimizer state, with the moving average of the parameters if there is one.
        skipped: The number of updates skipped because a value was not finite.
    """

    step: Tree
    parameters: Tree
    batch_stats: Tree
    optimizer: Tree
    skipped: Tree

    def updated(
        self,
        finite: Array,
        parameters: Tree,
        batch_stats: Tree,
        optimizer: Tree,
        *,
        bounded: bool = False,
    ) -> "TrainState":
        """Return the state after a step; if the loss, gradient norm or update is not finite, skip
        the update.

        A finite gradient can still produce parameters or moments that are not finite, so the
        results of the update are also checked.

        Args:
            finite: Whether the loss and the gradient norm are finite, as a boolean scalar.
            parameters: The updated parameters.
            batch_stats: The updated batch statistics.
            optimizer: The updated optimizer state.
            bounded: Whether a finite gradient always gives a finite update. If True, parameters and
                optimizer state are not checked.
        """
        finite &= all_finite(batch_stats if bounded else (parameters, batch_stats, optimizer))
        return TrainState(
            step=self.step + 1,
            parameters=select(finite, parameters, self.parameters),
            batch_stats=select(finite, batch_stats, self.batch_stats),
            optimizer=select(finite, optimizer, self.optimizer),
            skipped=self.skipped + ~finite,
        )


def select(condition: Array, new: Tree, old: Tree) -> Tree:
    """Return ``new`` if the condition is True, else ``old``, for every leaf of two pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def all_finite(tree: Tree) -> Bool[Array, ""]:
    """Return whether all values of all arrays in a pytree are finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    # Not `jnp.all`: XLA turns it into a chain of ANDs and copies that into each operation that
    # depends on it. The smallest CAN then has 22,600 ANDs and takes twice as long to compile.
    first_that_is_not = jnp.argmin(jnp.stack([jnp.array(True), *finite]))
    return first_that_is_not == 0


def gradients(
    config: ConfigDict,
    network: nnx.GraphDef,
    parameters: Tree,
    batch_stats: Tree,
    batch: Batch,
    step: Int[Array, ""],
    teacher: Tree | None = None,
) -> StepOutput:
    """Compute the loss and gradients of a batch, at once or in microbatches.

    Args:
        config: The resolved configuration.
        network: The `nnx.GraphDef` of the network.
        parameters: The parameters of the network, as a nested dict.
        batch_stats: The variables that are not trained: running statistics of BatchNorm, and the
            fixed map of the patch embedding, if any.
        batch: A global batch of images.
        step: The training step, from which the random keys of the batch are derived.
        teacher: The teacher's parameters from `Step.teacher`; None without a teacher.
    """
    compute = loss_and_gradients if config.accumulation.microbatches == 1 else accumulate_gradients
    types = compute_types(nnx.merge(network, parameters, batch_stats, copy=True))
    copied = compute_copy(config, parameters, types)
    if teacher is not None:
        teacher = compute_copy(config, teacher, types)
    outputs, pooled = compute(config, network, copied, batch_stats, batch, step, teacher)
    return outputs._replace(
        metrics=outputs.metrics | embedding_metrics(pooled, config.augment.views),
        gradients=stored_gradients(config, outputs.gradients, parameters),
    )


@runtime_checkable
class Steps(Protocol):
    """The interface of a train step, which `Step` implements for CAN."""

    @property
    def config(self) -> ConfigDict:
        """The resolved configuration."""
        ...

    def fresh(self) -> TrainState:
        """Initialize the train state at step 0."""
        ...

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take one step; return the new state, and metrics such as ``loss/total`` and
        ``skipped_steps``."""
        ...


@dataclasses.dataclass(frozen=True)
class Step:
    """A train step: the network's structure, the optimizer and the learning-rate schedule.

    The parameters and other arrays of a run are in a `TrainState`, not in this class.
    """

    config: ConfigDict
    network: nnx.GraphDef
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule

    def model(self, state: TrainState) -> can.CAN:
        """Build the network with the parameters and statistics of a train state."""
        return nnx.merge(self.network, state.parameters, state.batch_stats, copy=True)

    def train(
        self, state: TrainState, batch: Batch, position: Float[Array, ""] | None = None
    ) -> tuple[TrainState, Metrics]:
        """Take one step; if the loss, gradient or update is not finite, skip the update.

        The returned state counts skipped updates.

        Args:
            state: The train state.
            batch: A global batch of images.
            position: The position in the learning-rate schedule in steps; by default
                ``state.step``.
        """
        outputs = gradients(
            self.config, self.network, state.parameters, state.batch_stats, batch, state.step,
            self.teacher(state),
        )  # fmt: skip
        rate = self.schedule(state.step if position is None else position)
        moments = state.optimizer["transform"] if self.averages else state.optimizer
        updates, optimizer = self.optimizer.update(outputs.gradients, moments, state.parameters)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        updated = optax.apply_updates(state.parameters, updates)
        if self.averages:
            average = update_average(
                state.optimizer["average"], updated, self.config.optimizer.ema_decay, state.step,
                self.config.optimizer.ema_warmup,
            )  # fmt: skip
            optimizer = {"transform": optimizer, "average": average}

        gradient_norm = optax.global_norm(outputs.gradients)
        finite = jnp.isfinite(outputs.total) & jnp.isfinite(gradient_norm)
        finite &= jnp.abs(rate) < LARGEST_RATE  # also false for nan
        new = state.updated(
            finite, updated, outputs.batch_stats, optimizer,
            bounded=is_bounded(self.config.optimizer),
        )  # fmt: skip
        metrics = outputs.metrics | {
            "learning_rate": rate,
            "grad_norm": gradient_norm,
            "param_norm": optax.global_norm(new.parameters),
            "skipped_steps": new.skipped,
        }
        return new, metrics

    def fresh(self) -> TrainState:
        """Initialize the train state at step 0 from ``config.seed``."""
        rngs = nnx.Rngs(random_streams(self.config.seed)[0])
        network = can.CAN(self.config, heads(self.config), rngs)
        parameters = nnx.to_pure_dict(nnx.state(network, nnx.Param))
        optimizer = self.optimizer.init(parameters)
        if self.averages:
            optimizer = {"transform": optimizer, "average": parameters}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            batch_stats=nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)),
            optimizer=optimizer,
            skipped=jnp.zeros((), jnp.int32),
        )

    @property
    def averages(self) -> bool:
        """Whether the state also holds an exponential moving average of the parameters."""
        return bool(self.config.optimizer.ema_decay)

    def teacher(self, state: TrainState) -> Tree | None:
        """Return the moving average of the encoder if an objective needs a teacher, else None."""
        if "teacher" not in objectives.reads(self.config.objective.to_dict()):
            return None
        return {"encoder": state.optimizer["average"]["encoder"]}

    def evaluated(self, state: TrainState) -> Tree:
        """Return the parameters to evaluate, which are the moving average if there is one."""
        return state.optimizer["average"] if self.averages else state.parameters

    def started(self, state: TrainState, parameters: Tree) -> TrainState:
        """Return the state with new parameters; the moving average, if any, is reset to them."""
        state = dataclasses.replace(state, parameters=parameters)
        if self.averages:
            copied = jax.tree.map(jnp.copy, parameters)  # the step donates both
            state.optimizer = state.optimizer | {"average": copied}
        return state

    def features(self, state: TrainState, images: Array) -> Float[Array, "images width"]:
        """Return the mean patch token of the encoder for unmasked, unaugmented uint8 images."""
        augment = self.config.augment
        pixels = normalize(to_float(images), augment.mean, augment.std)
        state = dataclasses.replace(state, parameters=self.evaluated(state))
        return can.pool(self.model(state).encode(pixels))


NOT_TRAINED = optax.constant_schedule(0.0)


def make_step(config: ConfigDict, schedule: optax.Schedule = NOT_TRAINED) -> Step:
    """Return the train step of a validated configuration, without allocating arrays.

    Args:
        config: The resolved configuration.
        schedule: A function from the step number to the learning rate. The default schedule, a
            constant 0, suffices to compile or time a step, or to restore a state.

    Raises:
        UserError: A pattern in ``config.optimizer`` matches no parameter, all parameters are
            frozen, or `check_updates` rejects the optimizer.
    """
    check_updates(config.optimizer)
    network = abstract_network(config)
    check_patterns(config, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    return Step(config, nnx.graphdef(network), make_optimizer(config), schedule)


def stored_step(config: ConfigDict) -> Step:
    """Return the train step of a stored configuration, for restoring states but not for training.

    Args:
        config: A configuration returned by `can_jax.config.resolve.resolve_encoder`.
    """
    network = nnx.graphdef(abstract_network(config))
    return Step(config, network, make_optimizer(config), NOT_TRAINED)


def abstract_state(step: Steps, mesh: Mesh) -> TrainState:
    """Return the train state as `jax.ShapeDtypeStruct` with the sharding of each array."""
    shapes = jax.eval_shape(lambda: step.fresh())
    with jax.set_mesh(mesh):
        over_data = splits_state(step.config)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec),
        shapes,
        shardings(shapes, mesh, over_data=over_data),
    )


# An initialization runs once, so it is compiled without most optimizations, in half the time. The
# values are the same.
QUICKLY = {"xla_backend_optimization_level": 1}


def initialize(step: Steps, abstract: TrainState) -> TrainState:
    """Initialize a train state with every array created directly in its sharding.

    Args:
        step: The train step.
        abstract: The train state as `jax.ShapeDtypeStruct` with shardings; see `abstract_state`.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: step.fresh(), out_shardings=layout, compiler_options=QUICKLY)()


def initial_encoder(step: Steps) -> Tree:
    """Initialize only the parameters of the encoder, on the default device.

    The values equal those of `initialize` bit for bit. Without `jax.jit`, some values would be
    rounded differently.
    """
    return jax.jit(lambda: step.fresh().parameters["encoder"], compiler_options=QUICKLY)()


def lower_train_step(
    step: Steps, state: TrainState, batch: Batch, mesh: Mesh, timed: bool = False
) -> jax.stages.Lowered:
    """Trace and lower the jitted train step ``(state, batch) -> (state, metrics)``.

    The compiled step donates the buffers of the state. The step of a timed run takes the position
    in the learning-rate schedule as a third argument.

    Args:
        step: The train step.
        state: The train state, as arrays or as `jax.ShapeDtypeStruct` with shardings.
        batch: A batch, as arrays or as `jax.ShapeDtypeStruct` with shardings.
        mesh: The device mesh to which the shardings refer.
        timed: Whether the step is for a timed run; see `can_jax.train.pace`.
    """
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    position = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    further = (position,) if timed else ()
    with jax.set_mesh(mesh):
        jitted = jax.jit(
            step.train,
            donate_argnums=0,
            in_shardings=(layout, batch_sharding(mesh), *(leaf.sharding for leaf in further)),
            out_shardings=(layout, replicated(mesh)),
        )
        return jitted.lower(state, batch, *further)


def compile_train_step(
    step: Steps, state: TrainState, batch: Batch, mesh: Mesh
) -> jax.stages.Compiled:
    """Lower the train step with `lower_train_step` and compile it."""
    return lower_train_step(step, state, batch, mesh).compile()
