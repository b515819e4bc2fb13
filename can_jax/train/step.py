"""The train state, and the one jitted step from bytes to the updated state."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from can_jax.augment.photometric import normalize, to_float
from can_jax.data.pipeline.batch import Batch
from can_jax.distributed.mesh import batch_sharding, replicated
from can_jax.distributed.sharding_rules import shardings
from can_jax.models import can
from can_jax.optimizers.optimizer import check_patterns, make_optimizer
from can_jax.train.gradients import gradients
from can_jax.train.losses import Metrics, heads, random_streams

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a run is, between two steps. What to read next follows from ``step`` alone.

    Attributes:
        step: steps taken, those with skipped updates included.
        parameters: every trained array, as a nested dict.
        batch_stats: BatchNorm's running statistics.
        optimizer: the optimizer's state.
        skipped: how many updates were left out because something in them was not finite.

    The leaves are arrays, or what stands for them: shapes, or shardings.
    """

    step: Tree
    parameters: Tree
    batch_stats: Tree
    optimizer: Tree
    skipped: Tree

    def updated(
        self, finite: Array, parameters: Tree, batch_stats: Tree, optimizer: Tree
    ) -> "TrainState":
        """Return the state after a step.

        An update is left out, and counted, unless it and all that it leads to is finite: a finite
        gradient can still end in parameters or moments from which no later step recovers.

        Args:
            finite: Whether the loss and the gradient are.
            parameters, batch_stats, optimizer: As the update makes them.
        """
        finite &= all_finite((parameters, batch_stats, optimizer))
        return TrainState(
            step=self.step + 1,
            parameters=select(finite, parameters, self.parameters),
            batch_stats=select(finite, batch_stats, self.batch_stats),
            optimizer=select(finite, optimizer, self.optimizer),
            skipped=self.skipped + ~finite,
        )


def select(condition: Array, new: Tree, old: Tree) -> Tree:
    """``new`` where the condition holds, else ``old``, for every leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def all_finite(tree: Tree) -> Bool[Array, ""]:
    """Return whether every number of every array is finite."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    # Not `all`: XLA makes it a chain of ANDs, which it copies into each operation that depends on
    # it. The smallest CAN then has 22,600 of them, and takes twice as long to compile.
    first_that_is_not = jnp.argmin(jnp.stack([jnp.array(True), *finite]))
    return first_that_is_not == 0


@runtime_checkable
class Steps(Protocol):
    """What a run can train: CAN's `Step`, or another."""

    @property
    def config(self) -> ConfigDict:
        """Resolved."""
        ...

    def fresh(self) -> TrainState:
        """The state before the first step."""
        ...

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step. Metrics have `loss/total` and `skipped_steps`."""
        ...


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

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take one step. An update that is not finite is left out and counted."""
        found = gradients(
            self.config, self.network, state.parameters, state.batch_stats, batch, state.step
        )
        rate = self.schedule(state.step)
        updates, optimizer = self.optimizer.update(
            found.gradients, state.optimizer, state.parameters
        )
        updates = jax.tree.map(lambda update: -rate * update, updates)
        updated = optax.apply_updates(state.parameters, updates)

        gradient_norm = optax.global_norm(found.gradients)
        finite = jnp.isfinite(found.total) & jnp.isfinite(gradient_norm)
        new = state.updated(finite, updated, found.batch_stats, optimizer)
        metrics = found.metrics | {
            "learning_rate": rate,
            "grad_norm": gradient_norm,
            "param_norm": optax.global_norm(new.parameters),
            "skipped_steps": new.skipped,
        }
        return new, metrics

    def fresh(self) -> TrainState:
        """The state before the first step, by the configuration's seed."""
        rngs = nnx.Rngs(random_streams(self.config.seed)[0])
        network = can.build(self.config, heads(self.config), rngs)
        parameters = nnx.to_pure_dict(nnx.state(network, nnx.Param))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            batch_stats=nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)),
            optimizer=self.optimizer.init(parameters),
            skipped=jnp.zeros((), jnp.int32),
        )

    def features(self, state: TrainState, images: Array) -> Float[Array, "images width"]:
        """The mean patch token of whole, unaugmented images given as bytes."""
        augment = self.config.augment
        pixels = normalize(to_float(images), augment.mean, augment.std)
        return can.pool(self.model(state).encode(pixels))


def abstract_network(config: ConfigDict) -> can.CAN:
    """The network of a configuration, with shapes in place of arrays."""
    return nnx.eval_shape(lambda: can.build(config, heads(config), nnx.Rngs(0)))


def encoder_network(config: ConfigDict) -> can.CAN:
    """The encoder of a configuration alone, likewise."""
    return nnx.eval_shape(lambda: can.build(config, frozenset(), nnx.Rngs(0)))


def make_step(config: ConfigDict, schedule: optax.Schedule) -> Step:
    """The step of a validated configuration. No array is allocated.

    Raises:
        UserError: a pattern of the optimizer is that of no parameter.
    """
    network = abstract_network(config)
    check_patterns(config, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    return Step(config, nnx.graphdef(network), make_optimizer(config), schedule)


def stored_step(config: ConfigDict) -> Step:
    """Return the step of a stored configuration, whose states can be restored. It is not trained.

    Args:
        config: As `can_jax.config.resolve_encoder` returns it.
    """
    network = nnx.graphdef(abstract_network(config))
    return Step(config, network, make_optimizer(config), lambda _: 0.0)


def abstract_state(step: Steps, mesh: Mesh) -> TrainState:
    """A tree of `jax.ShapeDtypeStruct`, with where each array of the state lies."""
    shapes = jax.eval_shape(lambda: step.fresh())
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings(shapes, mesh),
    )


def initialize(step: Steps, abstract: TrainState) -> TrainState:
    """A fresh train state, every array created on the devices where `abstract_state` has it."""
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # Run once, so compiled in half the time: the numbers are the same.
    quickly = {"xla_backend_optimization_level": 1}
    return jax.jit(lambda: step.fresh(), out_shardings=places, compiler_options=quickly)()


def lower_train_step(
    step: Steps, state: TrainState, batch: Batch, mesh: Mesh
) -> jax.stages.Lowered:
    """The step, traced. Once compiled it is `(state, batch) -> (state, metrics)`; the state is
    donated to it.

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
        return jitted.lower(state, batch)


def compile_train_step(
    step: Steps, state: TrainState, batch: Batch, mesh: Mesh
) -> jax.stages.Compiled:
    """`lower_train_step`, compiled."""
    return lower_train_step(step, state, batch, mesh).compile()
