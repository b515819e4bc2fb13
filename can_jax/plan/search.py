"""A search for the remat policy, microbatches and mesh of the fastest step that fits in memory."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from can_jax.distributed.mesh import mesh_shape
from can_jax.models.vit import REMAT_POLICIES
from can_jax.plan.estimate import PRETRAINING, Plan, Work, compute_seconds, make_plan
from can_jax.plan.topology import Topology
from can_jax.utils.errors import UserError

# The bytes of temporaries under each remat policy, as a fraction of those without remat; and the
# fraction of them that more microbatches do not reduce. Both are rough, and only decide in which
# order the settings are compiled.
SHARE = {"none": 1.0, "dots": 0.75, "dots_no_batch": 0.35, "full": 0.2}
UNDIVIDED = 0.1
MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)
LARGEST_FSDP = 64


@dataclasses.dataclass(frozen=True)
class Choice:
    """The settings that a search may change; ``mesh`` holds the sizes (data, fsdp, tensor)."""

    remat: str
    microbatches: int
    mesh: tuple[int, int, int]

    def apply(self, config: ConfigDict) -> ConfigDict:
        """Return a copy of a configuration with the settings of this choice."""
        changed = config.copy_and_resolve_references()
        changed.model.remat = self.remat
        changed.accumulation.microbatches = self.microbatches
        changed.mesh.data, changed.mesh.fsdp, changed.mesh.tensor = self.mesh
        return changed

    @property
    def options(self) -> str:
        """The command-line options for the settings of this choice."""
        data, fsdp, tensor = self.mesh
        return (
            f"--config.model.remat={self.remat} "
            f"--config.accumulation.microbatches={self.microbatches} "
            f"--config.mesh.data={data} --config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor}"
        )


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A choice of settings for which the step was compiled, and the resulting plan."""

    choice: Choice
    plan: Plan


def choice_of(config: ConfigDict, devices: int) -> Choice:
    """Return a configuration's values of the settings that a search may change."""
    shape = mesh_shape(config.mesh, devices)
    return Choice(config.model.remat, config.accumulation.microbatches, shape)


def fit_mesh(config: ConfigDict, devices: int) -> str | None:
    """Change the mesh of a configuration in place if it does not match the number of devices.

    The sizes of `tensor` and `fsdp` are reduced to divisors of the number of devices. The size of
    `data` becomes the number of devices divided by the new sizes of `tensor` and `fsdp`.

    Args:
        config: The configuration, whose block ``config.mesh`` may be changed.
        devices: The number of devices that the mesh must cover.

    Returns:
        A message about the change, or None if the mesh already matched.
    """
    mesh = config.mesh
    try:
        mesh_shape(mesh, devices)
    except UserError as error:
        mesh.tensor = math.gcd(max(mesh.tensor, 1), devices)
        mesh.fsdp = math.gcd(max(mesh.fsdp, 1), devices // mesh.tensor)
        mesh.data = devices // mesh.tensor // mesh.fsdp
        changed = f"mesh.data={mesh.data}, mesh.fsdp={mesh.fsdp}, mesh.tensor={mesh.tensor}"
        return f"{error}; the planner uses {changed} instead"
    return None


def choices(config: ConfigDict, devices: int) -> Iterator[Choice]:
    """Yield the choices whose mesh fits the devices and whose microbatches divide the batch evenly.

    `mesh.fsdp` is a power of two up to `LARGEST_FSDP`, and `mesh.tensor` is unchanged. With
    microbatch negatives, the number of microbatches is unchanged, since the loss depends on it.
    """
    settings = config.accumulation
    counts = (settings.microbatches,) if settings.negatives == "microbatch" else MICROBATCHES
    tensor = mesh_shape(config.mesh, devices)[2]
    rows = devices // tensor
    sizes = [size for size in (2**i for i in range(rows.bit_length())) if size <= LARGEST_FSDP]
    for remat, parts, fsdp in itertools.product(REMAT_POLICIES, counts, sizes):
        if rows % fsdp == 0 and config.batch_size % (rows * parts) == 0:
            yield Choice(remat, parts, (rows // fsdp, fsdp, tensor))


class Search:
    """A search that compiles choices of settings, to find the fastest step that fits in memory.

    Among the choices predicted to fit in memory, the one with the fastest predicted step is
    compiled next. Each compilation refines the predictions for the remaining choices.

    Args:
        config: The resolved configuration.
        topology: The devices to compile for.
        mfu: The model FLOPs utilization (MFU) to assume for plans without an estimated time; above
            0 and at most 1.
        first: The plan of the unchanged configuration.
        work: The kind of train step, by default that of pretraining.
    """

    def __init__(
        self,
        config: ConfigDict,
        topology: Topology,
        mfu: float,
        first: Plan,
        work: Work = PRETRAINING,
    ):
        self._config, self._topology, self._mfu, self._work = config, topology, mfu, work
        devices = len(topology.devices)
        self.attempts = [Attempt(choice_of(config, devices), first)]
        # By policy and number of microbatches: the heads are traced to count their FLOPs.
        self._seconds: dict[tuple[str, int], float] = {}
        self._open = [c for c in choices(config, devices) if c != self.attempts[0].choice]

    def run(self, tries: int, report: Callable[[Attempt], None], *, first_fit: bool) -> None:
        """Compile choices one after another.

        The search ends after ``tries`` choices. If no choice is predicted to fit, the search
        compiles the one with the smallest predicted memory. The search ends when a compiled choice
        does not fit and no choice was predicted to fit.

        Args:
            tries: The maximum number of choices to compile.
            report: A function that is called with each attempt, for example to print it.
            first_fit: Whether to stop at the first choice that fits.
        """
        for _ in range(min(tries, len(self._open))):
            fitting = [
                choice for choice in self._open if self.predicted_bytes(choice) <= self.limit
            ]
            if fitting:
                choice = min(fitting, key=self.predicted_seconds)
            else:
                choice = min(self._open, key=self.predicted_bytes)
            self._open.remove(choice)
            changed = choice.apply(self._config)
            plan = make_plan(changed, self._topology, self._mfu, None, self._work)
            self.attempts.append(Attempt(choice, plan))
            report(self.attempts[-1])
            if (first_fit and plan.fits) or not (fitting or plan.fits):
                return

    @property
    def best(self) -> Attempt | None:
        """The attempt with the fastest step that fits, or None if no attempt fits."""
        fitting = [attempt for attempt in self.attempts if attempt.plan.fits]
        return min(fitting, key=lambda attempt: attempt.plan.step_seconds, default=None)

    @property
    def smallest(self) -> Attempt:
        """The attempt whose step needs the least memory."""
        return min(self.attempts, key=lambda attempt: attempt.plan.memory.total)

    @property
    def limit(self) -> int:
        """The usable memory of a device in bytes."""
        return self.attempts[0].plan.memory.limit

    def predicted_bytes(self, choice: Choice) -> float:
        """Predict the bytes of memory per device, from the activations of the last compiled
        choice."""
        last = self.attempts[-1]
        scale = self._activations(choice) / self._activations(last.choice)
        gradients = self._gradients(last.choice)
        activations = max(last.plan.memory.temporaries - gradients, 0) * scale
        return self._state(choice) + self._gradients(choice) + activations

    def predicted_seconds(self, choice: Choice) -> float:
        """Predict the seconds of a step: the time of its computation plus the time of its
        collectives."""
        data, fsdp, _ = choice.mesh
        weights = 2 * self.attempts[0].plan.parameters  # Bytes in bfloat16.
        sent = 2 * weights / fsdp / self._topology.bandwidth(data * fsdp)
        if fsdp > 1:  # Two all-gathers of parameters, and a reduce-scatter of gradients.
            sent += 3 * weights * choice.microbatches / self._topology.bandwidth(fsdp)
        return self._assumed_seconds(choice) * self._slowness + sent

    @property
    def _slowness(self) -> float:
        """The estimated compute time of the last compiled choice, divided by its compute time at
        the assumed MFU; 1 without an estimate."""
        last = self.attempts[-1]
        if last.plan.estimate is None:
            return 1.0
        return last.plan.compute_seconds / self._assumed_seconds(last.choice)

    def _assumed_seconds(self, choice: Choice) -> float:
        """Return the seconds of computation at the assumed MFU, which do not depend on the mesh."""
        key = choice.remat, choice.microbatches
        if key not in self._seconds:
            changed = choice.apply(self._config)
            self._seconds[key] = compute_seconds(changed, self._topology, self._mfu, self._work)
        return self._seconds[key]

    def _state(self, choice: Choice) -> float:
        first = self.attempts[0]
        memory = first.plan.memory
        state = memory.parameters + memory.optimizer
        _, fsdp, tensor = first.choice.mesh
        if 4 * first.plan.parameters > fsdp * tensor * memory.parameters:
            return state  # It is split over all devices (`mesh.shard_state`), whatever their axes.
        return state * fsdp / choice.mesh[1]

    def _gradients(self, choice: Choice) -> float:
        return 4 * self.attempts[0].plan.parameters / choice.mesh[1]

    @staticmethod
    def _activations(choice: Choice) -> float:
        return SHARE[choice.remat] * (UNDIVIDED + (1 - UNDIVIDED) / choice.microbatches)
