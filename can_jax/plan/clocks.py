"""Clock rates and memory bandwidths of accelerators, and the calibration of time estimates."""

import dataclasses

from can_jax.distributed.hardware import Chip, chip_of
from can_jax.plan.gpus import GPUS


@dataclasses.dataclass(frozen=True)
class Clock:
    """The speeds of one kind of device, which convert cycles and bytes to seconds.

    Attributes:
        hertz: The clock rate of the compiler's estimated cycles; None for GPUs, whose compiler
            estimates no cycles.
        memory_bandwidth: The bandwidth of the device's main memory in bytes/s.
        source: The publication, derivation or data sheet from which the values are taken.
    """

    hertz: float | None
    memory_bandwidth: float
    source: str


_BOOK = "jax-ml.github.io/scaling-book/tpus"
_TABLE = "arXiv:2304.01433, table of TPU v3 and v4"
_V5E = Clock(1.5e9, 819e9, _BOOK)
_V5P = Clock(1.75e9, 2765e9, "peak FLOP/s / (8 matrix units x 2 x 128^2 FLOPs per cycle)")
# Some pages count two matrix units in v6e. But its compiler schedules 369,000 FLOPs per cycle in a
# large matrix product, and two units of 256 x 256 perform at most 262,144.
_V6E = Clock(1.75e9, 1640e9, "peak FLOP/s / (4 matrix units x 2 x 256^2 FLOPs per cycle)")
CLOCKS = {
    "TPU v3": Clock(0.94e9, 450e9, _TABLE),  # A device is one of two cores.
    "TPU v4": Clock(1.05e9, 1228e9, _TABLE),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The measured speed of train steps on real devices relative to the estimated speed.

    Attributes:
        ratio: The measured steps per second divided by the estimated steps per second.
        source: The measurements from which the ratio is computed.
    """

    ratio: float
    source: str


# The geometric mean of three ratios; docs/plan.md lists the measured steps.
TPU_CALIBRATION = Calibration(
    0.89, "deit3-jax on v4, ratios 0.78 and 1.02, and big_vision on v3, ratio 0.89"
)


# From the only measured step, ViT-L with 64 images; see docs/plan.md.
GPU_CALIBRATION = Calibration(0.60, "can_jax on an H200, 48 ms estimated, 80 ms measured")


def clock_of(chip: Chip) -> Clock | None:
    """Return the clock rate and memory bandwidth of a kind of device, or None if unknown."""
    for gpu in GPUS.values():
        if chip_of(gpu.kind) == chip:
            return Clock(None, gpu.bandwidth, "data sheet")
    return CLOCKS.get(chip.name)


def calibration_of(chip: Chip) -> Calibration:
    """Return the calibration for a kind of device: one for TPUs, another for GPUs."""
    return TPU_CALIBRATION if chip.name in CLOCKS else GPU_CALIBRATION
