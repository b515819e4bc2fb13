"""The properties of GPUs that XLA's GPU compiler requires on machines without a GPU."""

import dataclasses
import importlib.util
import os
from typing import Any

from jax.experimental import topologies

from can_jax.utils.errors import one_line

# The compiler runs without a GPU: autotuning would time kernels on one, and products in Triton
# depend on autotuning.
FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")
SKIP_CHECK, XLA_FLAGS = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "XLA_FLAGS"
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that XLA's GPU compiler requires.

    Attributes:
        kind: JAX's ``device_kind``, such as ``NVIDIA H200``.
        capability: The CUDA compute capability, such as 9.0.
        cores: The number of streaming multiprocessors.
        lanes: The number of float32 units per multiprocessor.
        gigahertz: The boost clock in GHz.
        bandwidth: The memory bandwidth in bytes/s.
        memory: The size of the memory in bytes.
        cache: The size of the L2 cache in bytes.
        shared: The shared memory per multiprocessor in bytes. From compute capability 8.0 on, a
            thread block may use all but 1 KiB of the shared memory.
        threads: The maximum number of resident threads per multiprocessor.
    """

    kind: str
    capability: float
    cores: int
    lanes: int
    gigahertz: float
    bandwidth: float
    memory: int
    cache: int
    shared: int
    threads: int

    @property
    def accelerated(self) -> bool:
        """Whether the compiler may use architecture-specific instructions, as for ``sm_90a``."""
        return self.capability in (9.0, 10.0)


def _gpu(kind: str, memory: int | float, cache: int | float, shared: int, **properties: Any) -> Gpu:
    """Return a GPU, given its memory in GB, its L2 cache in MiB and its shared memory in KiB."""
    return Gpu(
        kind, memory=int(memory * 1e9), cache=int(cache * _MIB), shared=shared * 1024, **properties
    )


def _volta(kind: str, **p: Any) -> Gpu:
    return _gpu(kind, shared=96, lanes=64, threads=2048, capability=7.0, **p)


def _ampere(kind: str, **p: Any) -> Gpu:
    return _gpu(kind, shared=164, lanes=64, threads=2048, capability=8.0, **p)


def _workstation(kind: str, capability: float, **p: Any) -> Gpu:
    return _gpu(kind, shared=100, lanes=128, threads=1536, capability=capability, **p)


def _hopper(kind: str, **p: Any) -> Gpu:
    return _gpu(kind, shared=228, lanes=128, threads=2048, **p)


# By the name in --topology. Sources: NVIDIA's data sheets, and the tables of the CUDA programming
# guide for each compute capability.
GPUS = {
    "v100": _volta("Tesla V100-SXM2-32GB", cores=80, gigahertz=1.53, bandwidth=900e9,
                   memory=34, cache=6),
    "t4": _gpu("Tesla T4", capability=7.5, cores=40, lanes=64, gigahertz=1.59, bandwidth=320e9,
               memory=16, cache=4, shared=64, threads=1024),
    "a100": _ampere("NVIDIA A100-SXM4-80GB", cores=108, gigahertz=1.41, bandwidth=2039e9,
                    memory=85, cache=40),
    "a100-40": _ampere("NVIDIA A100-SXM4-40GB", cores=108, gigahertz=1.41, bandwidth=1555e9,
                       memory=42, cache=40),
    "a6000": _workstation("NVIDIA RTX A6000", 8.6, cores=84, gigahertz=1.8, bandwidth=768e9,
                          memory=51, cache=6),
    "rtx3090": _workstation("NVIDIA GeForce RTX 3090", 8.6, cores=82, gigahertz=1.695,
                            bandwidth=936e9, memory=25, cache=6),
    "rtx4090": _workstation("NVIDIA GeForce RTX 4090", 8.9, cores=128, gigahertz=2.52,
                            bandwidth=1008e9, memory=25, cache=72),
    "l4": _workstation("NVIDIA L4", 8.9, cores=58, gigahertz=2.04, bandwidth=300e9,
                       memory=24, cache=48),
    "l40s": _workstation("NVIDIA L40S", 8.9, cores=142, gigahertz=2.52, bandwidth=864e9,
                         memory=48, cache=96),
    "rtx5090": _workstation("NVIDIA GeForce RTX 5090", 12.0, cores=170, gigahertz=2.407,
                            bandwidth=1792e9, memory=34, cache=96),
    "h100": _hopper("NVIDIA H100 80GB HBM3", capability=9.0, cores=132, gigahertz=1.98,
                    bandwidth=3352e9, memory=84.9, cache=50),
    "h200": _hopper("NVIDIA H200", capability=9.0, cores=132, gigahertz=1.98, bandwidth=4800e9,
                    memory=151, cache=50),
    "b200": _hopper("NVIDIA B200", capability=10.0, cores=148, gigahertz=1.965, bandwidth=7672e9,
                    memory=191, cache=126.5),
}  # fmt: skip


def target_config(gpu: Gpu) -> str:
    """Return the description of a GPU for XLA: a ``GpuTargetConfigProto`` in text format."""
    major, minor = divmod(round(10 * gpu.capability), 10)
    block = gpu.shared - (1024 if gpu.capability >= 8 else 0)
    feature = "feature_extension: ACCELERATED_FEATURES" if gpu.accelerated else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth:.0f}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.gigahertz}
  device_memory_size: {gpu.memory}
  shared_memory_per_block_optin: {block}
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.kind}"
"""


def compiler_devices(name: str, hosts: int, per_host: int) -> tuple[list[Any] | None, str]:
    """Return the devices for XLA's GPU compiler, which can compile on a machine without a GPU.

    Call this function before JAX initializes a backend. The function sets the environment variables
    ``JAX_SKIP_CUDA_CONSTRAINTS_CHECK`` and ``XLA_FLAGS``, which `can_jax.plan.topology.planning`
    restores.

    Args:
        name: The name of the GPU, a key of `GPUS`.
        hosts: The number of hosts.
        per_host: The number of GPUs per host.

    Returns:
        The devices and an empty string. If the compiler cannot be used, None and a remedy.
    """
    if not any(map(importlib.util.find_spec, PLUGINS)):
        return None, "install the GPU compiler, which needs no GPU: pip install 'jax[cuda13]'"
    os.environ.setdefault(SKIP_CHECK, "1")
    given = os.environ.get(XLA_FLAGS, "")
    added = [flag for flag in FLAGS if flag.split("=")[0] not in given]
    os.environ[XLA_FLAGS] = " ".join([given, *added]).strip()
    try:
        description = topologies.get_topology_desc(
            platform="cuda",
            topology_name=f"{name}:{per_host}x{hosts}",
            target_config=target_config(GPUS[name]),
            topology=f"1x{hosts}x{per_host}",
        )
    except Exception as error:  # The type differs, for example for a plugin that does not fit JAX.
        return None, f"repair the GPU compiler, which cannot start: {one_line(error)[:200]}"
    devices = list(description.devices)
    assert len(devices) == hosts * per_host
    return devices, ""
