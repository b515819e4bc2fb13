"""A benchmark of the compiled train step without data loading, compared with PyTorch."""

import dataclasses
import importlib.util
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from can_jax.config.baselines import METHODS, PAPER_NOISE, changed
from can_jax.config.durations import value_of
from can_jax.config.resolve import resolve
from can_jax.data.pipeline.batch import Batch, batch_shapes
from can_jax.distributed.hardware import measured_peak
from can_jax.distributed.mesh import batch_sharding, make_mesh
from can_jax.distributed.runtime import environment
from can_jax.models.backbones import encoder_size, require_vit
from can_jax.models.can import grid_of, level_scale
from can_jax.models.masking import visible_count
from can_jax.objectives import OBJECTIVES, active
from can_jax.train.flops import train_flops_per_image
from can_jax.train.step import abstract_state, compile_train_step, initialize, make_step
from can_jax.utils.errors import UserError

Turn = Callable[[float], float]  # Measures for some seconds; returns images per second.
BASELINE = Path(__file__).with_name("torch_reference.py")
# Steps are dispatched in groups of about this duration, with at most this many steps.
GROUP_SECONDS, MOST_IN_FLIGHT = 0.25, 8

# Changes that remove a part of the step. The part's time is the difference to the whole step.
ABLATIONS: dict[str, dict[str, Any]] = {
    "augmentation": {"augment.jitter": 0.0, "augment.grayscale": 0.0, "augment.blur": 0.0},
    "noise": {"noise.sigma_max": 0.0, "objective.denoising.weight": 0.0},
    "contrastive head and loss": {"objective.contrastive.weight": 0.0},
    "decoder and its losses": {
        "objective.reconstruction.weight": 0.0,
        "objective.denoising.weight": 0.0,
    },
}
# The changes with which can_jax does the same work as the PyTorch baseline.
PEER_WORK = ABLATIONS["augmentation"] | PAPER_NOISE
# For each of these settings, the only value that the PyTorch baseline supports.
BASELINE_SETTINGS: dict[str, Any] = {
    "augment.views": 2,
    "model.backbone_options": (),
    "model.projector.final_norm": False,
    "noise.embed_level": True,
    "optimizer.name": "adamw",
    "optimizer.ema_decay": 0.0,
    "optimizer.clip_norm": None,
    **{
        f"objective.contrastive.{name}": key.default
        for name, key in OBJECTIVES.get("contrastive").keys.items()
        if name not in ("temperature", "block")
    },
}


def model_name(config: ConfigDict) -> str:
    """Return the name of a resolved configuration's model, such as ``ViT-B/16, 224 px``."""
    model, sides = config.model, sorted(set(config.data.image_size), reverse=True)
    own = any(model[key] for key in ("width", "depth", "heads"))
    name = "custom ViT" if own else f"ViT-{model.size}"
    return f"{name}/{model.patch_size}, {' x '.join(map(str, sides))} px"


def random_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> Batch:
    """Return a batch of random values on the devices, with the shapes of a training batch."""
    shapes = batch_shapes(config, batch_sharding(mesh))
    rng = np.random.default_rng(0)

    def draw(shape: Any) -> np.ndarray:
        top = 256 if shape.dtype == np.uint8 else config.batch_size
        return rng.integers(0, top, shape.shape).astype(shape.dtype)

    return jax.tree.map(lambda shape: jax.device_put(draw(shape), shape.sharding), shapes)


def timed(step: Callable[[], Any], finish: Callable[[], None], images: int) -> Turn:
    """Return a function that measures the throughput of a train step in images per second.

    Short steps are dispatched in groups, so that the devices do not wait for the host.

    Args:
        step: A function that dispatches a step, and may return before the step is computed.
        finish: A function that blocks until all dispatched steps are computed.
        images: The number of images per step.
    """

    def turn(seconds: float) -> float:
        steps, group, elapsed, started = 0, 1, 0.0, time.perf_counter()
        while elapsed < seconds:
            for _ in range(group):
                step()
            finish()
            steps += group
            elapsed = time.perf_counter() - started
            group = max(1, min(MOST_IN_FLIGHT, int(GROUP_SECONDS * steps / elapsed)))
        return images * steps / elapsed

    return turn


@dataclasses.dataclass
class CompiledStep:
    """A compiled train step of can_jax, with its compilation time and memory use.

    Attributes:
        turn: A function that runs the step for a number of seconds, and returns the images per
            second.
        compile_seconds: The duration of tracing and compilation in seconds.
        memory: The peak memory use of a device in bytes, over all programs of this process;
            `planned_memory` if the device does not report its memory use.
        program: The compiled program of the step.
    """

    turn: Turn
    compile_seconds: float
    memory: int
    program: jax.stages.Compiled

    @property
    def planned_memory(self) -> int:
        """The compiler's count of bytes for the step's arguments and temporaries on a device."""
        plan: Any = self.program.memory_analysis()
        return int(plan.argument_size_in_bytes + plan.temp_size_in_bytes)


def our_step(config: ConfigDict) -> CompiledStep:
    """Compile the train step of a resolved configuration, and run it once to warm up."""
    mesh = make_mesh(config.mesh)
    step = make_step(config, lambda _: 1e-4)
    abstract = abstract_state(step, mesh)
    batch = random_batch(config, mesh)
    started = time.perf_counter()
    compiled = compile_train_step(step, abstract, batch, mesh)
    seconds = time.perf_counter() - started
    state = initialize(step, abstract)

    def advance() -> None:
        nonlocal state
        state, _ = compiled(state, batch)

    advance()
    turn = timed(advance, lambda: jax.block_until_ready(state.step), config.batch_size)
    ours = CompiledStep(turn, seconds, 0, compiled)
    memory_stats = jax.local_devices()[0].memory_stats() or {}
    ours.memory = int(memory_stats.get("peak_bytes_in_use", ours.planned_memory))
    return ours


def counted_flops(config: ConfigDict) -> float:
    """Return the FLOPs per image of a train step, as XLA counts them before optimization.

    The count includes all operations, not only matrix products. The loop over the transformer
    blocks is unrolled, and rematerialization and microbatches are disabled, so that each operation
    is counted once.
    """
    axes = dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), 1)  # one device suffices
    whole = {"model.scan": False, "model.remat": "none", "accumulation.microbatches": 1}
    config = resolve(changed(config, whole | axes))
    step, mesh = make_step(config), make_mesh(config.mesh, jax.devices()[:1])
    batch = batch_shapes(config, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        counted: Any = jax.jit(step.train).lower(abstract_state(step, mesh), batch).cost_analysis()
    return counted["flops"] / config.batch_size


def check_baseline(config: ConfigDict) -> None:
    """Check that PyTorch is installed, and that the PyTorch baseline supports a configuration.

    Raises:
        UserError: PyTorch is not installed, or a setting has no counterpart in the baseline.
    """
    require_vit(config, "--peer")
    names = active(config.objective.to_dict()).keys()
    if names != {"contrastive", "reconstruction", "denoising"}:
        raise UserError(
            "--peer requires the objectives of the PyTorch baseline (contrastive, reconstruction "
            f"and denoising), but the recipe has {', '.join(names)}"
        )
    for key, value in BASELINE_SETTINGS.items():
        if value_of(config, key) != value:
            raise UserError(
                f"config.{key}={value_of(config, key)}: --peer requires {value}, since the PyTorch "
                "baseline supports no other value"
            )
    if not importlib.util.find_spec("torch"):
        raise UserError("--peer requires PyTorch: pip install torch")


def baseline_step(config: ConfigDict, compiled: bool) -> tuple[Turn, str]:
    """Build the train step of a configuration in PyTorch, on a GPU if JAX uses one, else on the
    CPU.

    The step omits color augmentation, which PyTorch programs usually apply in data loader workers.

    Args:
        config: The resolved configuration, which must pass `check_baseline`.
        compiled: Whether to compile the forward pass and the losses with `torch.compile`.

    Returns:
        A pair: a function that measures the throughput of the step in images per second, and a
            label such as ``torch 2.9.0, compiled``.

    Raises:
        UserError: PyTorch is not installed, or a setting has no counterpart in the baseline.
    """
    check_baseline(config)
    import torch

    reference = SimpleNamespace(**runpy.run_path(str(BASELINE), run_name=BASELINE.stem))
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    size, model = encoder_size(config.model), config.model
    decoder, projector = model.decoder, model.projector
    grid = grid_of(config)
    sizes = reference.Sizes(
        size.width, size.depth, size.heads, decoder.width, decoder.depth, decoder.heads,
        model.patch_size, config.data.channels, grid,
        (projector.hidden,) * (projector.layers - 1) + (projector.outputs,), projector.batch_norm,
    )  # fmt: skip
    objective = config.objective
    weights = [objective[n].weight for n in ("contrastive", "reconstruction", "denoising")]
    settings = reference.Settings(
        visible_count(grid[0] * grid[1], model.mask_ratio), config.noise.sigma_max,
        level_scale(config), config.noise.level_tokens, objective.reconstruction.normalize,
        objective.contrastive.temperature, tuple(weights),
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = reference.Trainer(
        reference.CAN(sizes, settings).to(device), config.augment.mean, config.augment.std, 1e-4,
        config.optimizer.weight_decay, bfloat16=model.dtype == "bfloat16", compiled=compiled,
    )  # fmt: skip
    rows = config.batch_size * config.augment.views
    shape = (rows, *config.data.image_size, config.data.channels)
    views = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    trainer.step(views)
    turn = timed(lambda: trainer.step(views), finish, config.batch_size)
    return turn, f"torch {torch.__version__}{', compiled' if compiled else ''}"


def measure_step(
    recipe: ConfigDict, *, rounds: int, seconds: float, peer: bool, peer_compiled: bool, parts: bool
) -> dict[str, Any]:
    """Measure the throughput of consecutive train steps on one batch that stays on the device.

    Args:
        recipe: The configuration of a recipe, not yet resolved.
        rounds: The number of rounds, each of which measures a matrix product and every step once.
        seconds: The duration of each measurement in seconds.
        peer: Whether to also measure the PyTorch baseline. If ``peer`` is True, can_jax and
            PyTorch both omit color augmentation and use the paper's denoising branch.
        peer_compiled: Whether to compile the PyTorch baseline with `torch.compile`.
        parts: Whether to also measure MAE, SimCLR, and the variants of CAN in `ABLATIONS`, each of
            which lacks one part.

    Returns:
        The results by name, as JSON values. Throughputs are medians over the rounds. ``ratio`` is
            the median of can_jax's throughput divided by PyTorch's in the same round.

    Raises:
        UserError: ``peer`` is True, and either PyTorch is not installed, a setting has no
            counterpart in the PyTorch baseline, or there are several devices. Or ``parts`` is also
            True, whose steps do other work than the PyTorch baseline.
    """
    if peer and parts:
        raise UserError("--peer and --parts measure different steps: run one command for each")
    # The devices of a CPU share its cores, which PyTorch uses, too.
    if peer and (count := jax.device_count()) > 1 and jax.default_backend() != "cpu":
        raise UserError(
            f"--peer compares one device, but JAX has {count}: set CUDA_VISIBLE_DEVICES=0"
        )
    config = resolve(recipe)
    if peer:  # Both sides do the same work.
        config = resolve(changed(recipe, PEER_WORK))
        check_baseline(config)
    variants = {"can": config}
    if parts:
        variants |= {n: resolve(changed(recipe, METHODS[n])) for n in ("mae", "simclr")}
        variants |= {f"without {n}": resolve(changed(recipe, c)) for n, c in ABLATIONS.items()}
    built = {name: our_step(variant) for name, variant in variants.items()}
    turns = {name: ours.turn for name, ours in built.items()}
    results: dict[str, Any] = {}
    if peer:
        turns["peer"], results["peer"] = baseline_step(config, peer_compiled)
    devices = make_mesh(config.mesh).size
    rates: dict[str, list[float]] = {"matmul": []}
    for _ in range(rounds):
        rates["matmul"].append(measured_peak(config.model.dtype) * devices)
        for name, turn in turns.items():
            rates.setdefault(name, []).append(turn(seconds))
    rate = {name: statistics.median(values) for name, values in rates.items()}
    analytic = {name: train_flops_per_image(v) for name, v in variants.items()}
    can, counted = built["can"], counted_flops(config)
    results |= {
        "images_per_second": rate["can"],
        "analytic_flops_per_image": analytic["can"],
        "counted_flops_per_image": counted,
        "measured_peak_flops": rate["matmul"],
        "mfu_of_measured_peak": rate["can"] * analytic["can"] / rate["matmul"],
        "peak_memory_bytes": can.memory,
        "compile_seconds": can.compile_seconds,
        "batch_size": config.batch_size,
        "dtype": config.model.dtype,
        "model": model_name(config),
        "rounds": rounds,
        "environment": environment(make_mesh(config.mesh)),
    }
    if peer:
        pairs = zip(rates["can"], rates["peer"], strict=True)
        results["peer_images_per_second"] = rate["peer"]
        results["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
    if parts:
        milliseconds = {name: 1000 * config.batch_size / rate[name] for name in variants}
        results["milliseconds"] = milliseconds
        results["simclr_over_can"] = {
            "analytic_flops": analytic["simclr"] / analytic["can"],
            "counted_flops": counted_flops(variants["simclr"]) / counted,
            "time": milliseconds["simclr"] / milliseconds["can"],
        }
    return results
