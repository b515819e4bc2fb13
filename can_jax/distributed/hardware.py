"""Peak FLOP/s, memory and bandwidth of devices according to data sheets, and measured FLOP/s.

A device is a chip, except on TPU v2 and v3, where JAX treats each of a chip's two cores as a
device.
"""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp

GIB = 2**30
FIRST_WITH_BFLOAT16 = 8.0  # the compute capability of NVIDIA's Ampere GPUs


@dataclasses.dataclass(frozen=True)
class Chip:
    """The properties of one kind of device.

    Attributes:
        name: A prefix of JAX's ``device_kind``, such as ``NVIDIA H100``.
        peak_flops: The peak FLOP/s of dense matrix products in bfloat16 with float32 accumulation;
            in float16 for GPUs without bfloat16.
        memory: The bytes of device memory that a program may use: the compiler's limit on TPUs,
            nine tenths of the memory on GPUs; None if unknown.
        link: The bytes/s that a device sends to other devices over the fast interconnect. For a
            TPU, ``link`` is the bandwidth of one torus axis, with both directions added. For a GPU,
            ``link`` is the bandwidth of NVLink, or of PCIe if the GPU has no NVLink.
        network: The bytes/s that one device sends to other TPU slices or hosts.
    """

    name: str
    peak_flops: float
    memory: int | None = None
    link: float | None = None
    network: float | None = None


def _gib(amount: float) -> int:
    return int(amount * GIB)


CHIPS = (
    Chip("TPU v3", 61.5e12, _gib(15.48), 140e9, 3.1e9),
    Chip("TPU v4", 275e12, _gib(30.75), 90e9, 6.2e9),
    Chip("TPU v5 lite", 197e12, _gib(15.75), 90e9, 3.1e9),
    Chip("TPU v5e", 197e12, _gib(15.75), 90e9, 3.1e9),
    Chip("TPU v5", 459e12, _gib(95.73), 180e9, 6.2e9),
    Chip("TPU v5p", 459e12, _gib(95.73), 180e9, 6.2e9),
    Chip("TPU v6 lite", 918e12, _gib(31.24), 180e9, 12.5e9),
    Chip("TPU v6e", 918e12, _gib(31.24), 180e9, 12.5e9),
    Chip("NVIDIA A100", 312e12, _gib(0.9 * 80), 300e9, 25e9),
    Chip("NVIDIA A100-SXM4-40GB", 312e12, _gib(0.9 * 40), 300e9, 25e9),
    Chip("NVIDIA A100-PCIE-40GB", 312e12, _gib(0.9 * 40), 32e9, 12.5e9),
    Chip("NVIDIA A100 80GB PCIe", 312e12, _gib(0.9 * 80), 32e9, 12.5e9),
    Chip("NVIDIA H100", 989e12, _gib(0.9 * 80), 450e9, 50e9),
    Chip("NVIDIA H100 PCIe", 756e12, _gib(0.9 * 80), 64e9, 25e9),
    Chip("NVIDIA H100 NVL", 835e12, _gib(0.9 * 94), 64e9, 25e9),
    Chip("NVIDIA H200 NVL", 835e12, _gib(0.9 * 141e9 / GIB), 64e9, 25e9),
    Chip("NVIDIA H200", 989e12, _gib(0.9 * 141e9 / GIB), 450e9, 50e9),
    Chip("NVIDIA B200", 2250e12, _gib(0.9 * 180), 900e9, 50e9),
    Chip("NVIDIA L4", 121e12, _gib(0.9 * 24), 32e9, 12.5e9),
    Chip("NVIDIA L40S", 362e12, _gib(0.9 * 48), 32e9, 12.5e9),
    Chip("NVIDIA RTX A6000", 155e12, _gib(0.9 * 48), 56e9, 12.5e9),
    Chip("NVIDIA GeForce RTX 3090", 71e12, _gib(0.9 * 24), 32e9, 12.5e9),
    Chip("NVIDIA GeForce RTX 4090", 165e12, _gib(0.9 * 24), 32e9, 12.5e9),
    Chip("NVIDIA GeForce RTX 5090", 209e12, _gib(0.9 * 32), 64e9, 12.5e9),
    Chip("NVIDIA V100", 125e12, _gib(0.9 * 32), 150e9, 12.5e9),
    Chip("Tesla V100", 125e12, _gib(0.9 * 32), 150e9, 12.5e9),
    Chip("Tesla V100-PCIE", 112e12, _gib(0.9 * 16), 16e9, 12.5e9),
    Chip("Tesla T4", 65e12, _gib(0.9 * 16), 16e9, 6.2e9),
)


def chip_of(kind: str) -> Chip | None:
    """Return the entry of `CHIPS` for JAX's ``device_kind``, or None for an unknown device.

    The name of an entry matches only whole words: ``NVIDIA L4`` does not match ``NVIDIA L40``. A
    laptop's GPU is another chip than the desktop's of the same name, and has no entry.
    """
    if re.search(r"\b(Laptop|Max-Q)\b", kind):
        return None
    matching = [chip for chip in CHIPS if re.match(rf"{re.escape(chip.name)}(?!\w)", kind)]
    return max(matching, key=lambda chip: len(chip.name), default=None)


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that a run will use, all of one kind.

    Attributes:
        platform: JAX's name of the platform: ``cpu``, ``gpu`` or ``tpu``.
        kind: JAX's ``device_kind``, such as ``NVIDIA H100 80GB HBM3``.
        count: The number of devices in all processes together.
        memory: The bytes of memory that a program may use on each device; None if unknown.
        bfloat16: Whether the devices have hardware for bfloat16 matrix products.
    """

    platform: str
    kind: str
    count: int
    memory: int | None
    bfloat16: bool


def attached_devices() -> Devices:
    """Return a description of the devices of all processes of this job."""
    device = jax.local_devices()[0]
    chip = chip_of(device.device_kind)
    try:
        memory = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # Some platforms have no such statistics.
        memory = None
    if memory is None and chip is not None:
        memory = chip.memory
    capability = getattr(device, "compute_capability", None)
    if capability is not None:
        bfloat16 = float(capability) >= FIRST_WITH_BFLOAT16
    else:
        bfloat16 = device.platform != "cpu"
    return Devices(device.platform, device.device_kind, jax.device_count(), memory, bfloat16)


def peak_flops(dtype: str) -> float:
    """Return the peak FLOP/s of one device.

    The peaks in `CHIPS` are those of 16-bit floats, whatever ``dtype`` is. If `CHIPS` lacks the
    device, as for a CPU, the rate of a matrix product is measured.

    Args:
        dtype: The dtype of the matrices whose product is measured if `CHIPS` lacks the device.
    """
    if chip := chip_of(jax.devices()[0].device_kind):
        return chip.peak_flops
    return measured_peak(dtype)


def measured_peak(dtype: str) -> float:
    """Measure the FLOP/s of a matrix product, per device. The devices of a CPU share its cores."""
    shared = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return matmul_flops(dtype) / shared


def matmul_flops(dtype: str, size: int = 2048, repeats: int = 4) -> float:
    """Measure the FLOP/s of a product of square matrices on one device.

    Args:
        dtype: The dtype of the matrices.
        size: The number of rows and columns of each matrix.
        repeats: The number of measurements, of which the fastest counts.
    """
    matrix = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
