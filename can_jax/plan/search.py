"""What else would fit, and which of that is fastest: remat policies x microbatches x meshes."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from can_jax.distributed.mesh import mesh_shape
from can_jax.models.vit import REMAT_POLICIES
from can_jax.plan.estimate import Plan, compute_seconds, make_plan
from can_jax.plan.topology import Topology
from can_jax.utils.errors import UserError

# Temporaries under each policy as a share of those without, and what microbatches do not divide:
# rough, to decide what is worth compiling first.
SHARE = {"none": 1.0, "dots": 0.75, "dots_no_batch": 0.35, "full": 0.2}
UNDIVIDED = 0.1
MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)
LARGEST_FSDP = 64


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a search may change of a configuration."""

    remat: str
    microbatches: int
    mesh: tuple[int, int, int]

    def apply(self, config: ConfigDict) -> ConfigDict:
        """The configuration with this choice."""
        changed = config.copy_and_resolve_references()
        changed.model.remat = self.remat
        changed.accumulation.microbatches = self.microbatches
        changed.mesh.data, changed.mesh.fsdp, changed.mesh.tensor = self.mesh
        return changed

    @property
    def options(self) -> str:
        """As a command takes it."""
        data, fsdp, tensor = self.mesh
        return (
            f"--config.model.remat={self.remat} "
            f"--config.accumulation.microbatches={self.microbatches} "
            f"--config.mesh.data={data} --config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor}"
        )


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A choice, and what came of compiling it."""

    choice: Choice
    plan: Plan


def choice_of(config: ConfigDict, devices: int) -> Choice:
    """What a configuration chose itself."""
    shape = mesh_shape(config.mesh, devices)
    return Choice(config.model.remat, config.accumulation.microbatches, shape)


def fit_mesh(config: ConfigDict, devices: int) -> str | None:
    """Change a mesh that is not one of so many devices into the nearest that is; says what it did,
    if anything."""
    mesh = config.mesh
    try:
        mesh_shape(mesh, devices)
    except UserError as error:
        mesh.tensor = math.gcd(max(mesh.tensor, 1), devices)
        mesh.fsdp = math.gcd(max(mesh.fsdp, 1), devices // mesh.tensor)
        mesh.data = devices // mesh.tensor // mesh.fsdp
        return f"{error}; planned with {mesh.data}, {mesh.fsdp}, {mesh.tensor}"
    return None


def choices(config: ConfigDict, devices: int) -> Iterator[Choice]:
    """All that divide the devices and the batch; `mesh.tensor` stays."""
    tensor = mesh_shape(config.mesh, devices)[2]
    rows = devices // tensor
    sizes = [size for size in (2**i for i in range(rows.bit_length())) if size <= LARGEST_FSDP]
    for remat, parts, fsdp in itertools.product(REMAT_POLICIES, MICROBATCHES, sizes):
        if rows % fsdp == 0 and config.batch_size % (rows * parts) == 0:
            yield Choice(remat, parts, (rows // fsdp, fsdp, tensor))


class Search:
    """Compiles choices, the fastest that ought to fit first, and learns from what they needed.

    Args:
        config: resolved.
        topology: of the devices.
        mfu: assumed.
        first: the plan of the configuration as it is.
    """

    def __init__(self, config: ConfigDict, topology: Topology, mfu: float, first: Plan):
        self._config, self._topology, self._mfu = config, topology, mfu
        devices = len(topology.devices)
        self.attempts = [Attempt(choice_of(config, devices), first)]
        self._open = [c for c in choices(config, devices) if c != self.attempts[0].choice]

    def run(self, tries: int, say: Callable[[Attempt], None], *, first_fit: bool) -> None:
        """Try choices until none is left to try.

        Args:
            tries: choices to compile at most.
            say: called after each.
            first_fit: stop as soon as one fits.
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
            plan = make_plan(choice.apply(self._config), self._topology, self._mfu)
            self.attempts.append(Attempt(choice, plan))
            say(self.attempts[-1])
            if (first_fit and plan.fits) or not (fitting or plan.fits):
                return

    @property
    def best(self) -> Attempt | None:
        """The fastest that fits."""
        fitting = [attempt for attempt in self.attempts if attempt.plan.fits]
        return min(fitting, key=lambda attempt: attempt.plan.step_seconds, default=None)

    @property
    def smallest(self) -> Attempt:
        """The one that needs the least memory."""
        return min(self.attempts, key=lambda attempt: attempt.plan.memory.total)

    @property
    def limit(self) -> int:
        """Bytes of a device."""
        return self.attempts[0].plan.memory.limit

    def predicted_bytes(self, choice: Choice) -> float:
        """Of a device, scaled from the last that was compiled."""
        last = self.attempts[-1]
        scale = self._activations(choice) / self._activations(last.choice)
        known = self._gradients(last.choice)
        activations = max(last.plan.memory.temporaries - known, 0) * scale
        return self._state(choice) + self._gradients(choice) + activations

    def predicted_seconds(self, choice: Choice) -> float:
        """Of a step: its FLOPs, and the gradients and parameters that are sent."""
        changed = choice.apply(self._config)
        data, fsdp, _ = choice.mesh
        weights = 2 * self.attempts[0].plan.parameters  # in bfloat16
        sent = 2 * weights / fsdp / self._topology.bandwidth(data * fsdp)
        if fsdp > 1:  # gathered forward and backward, and the gradients scattered
            sent += 3 * weights * choice.microbatches / self._topology.bandwidth(fsdp)
        return compute_seconds(changed, self._topology, self._mfu) + sent

    def _state(self, choice: Choice) -> float:
        first = self.attempts[0]
        memory = first.plan.memory
        state = memory.parameters + memory.optimizer
        return state * first.choice.mesh[1] / choice.mesh[1]

    def _gradients(self, choice: Choice) -> float:
        return 4 * self.attempts[0].plan.parameters / choice.mesh[1]

    @staticmethod
    def _activations(choice: Choice) -> float:
        return SHARE[choice.remat] * (UNDIVIDED + (1 - UNDIVIDED) / choice.microbatches)
