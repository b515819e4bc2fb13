"""Automatic settings of a run, which depend on its devices, its data and its time limit.

`can-jax train --data=DIR` chooses settings at the first start, and prints a reason for each. A
resumed run keeps the stored settings, except for `DEVICE_KEYS`, which are chosen again.
"""

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from can_jax.checkpoint.resume import is_given
from can_jax.config.defaults import RECIPE
from can_jax.config.durations import DURATIONS, PROBE, value_of
from can_jax.config.resolve import as_size, resolve
from can_jax.data.sources.survey import Survey
from can_jax.distributed.hardware import Devices
from can_jax.objectives import reads
from can_jax.optimizers.optimizer import peak_learning_rate
from can_jax.train.memory import can_estimate, constant_bytes, gib, parameter_count, step_bytes
from can_jax.utils.errors import UserError
from can_jax.utils.settings import refuse

# Settings that adapt to other devices at a resume, since the results do not depend on them. With
# microbatch negatives, a resumed run keeps `accumulation.microbatches`.
DEVICE_KEYS = (
    "mesh.data", "mesh.fsdp", "mesh.tensor", "accumulation.microbatches", "model.remat",
    "model.scan",
)  # fmt: skip
FOR_VIT_B = 16 * 2**30  # bytes that `vit_b` requires; a card of 24 GB offers JAX 17.7 GiB
BATCHES = (1024, 512, 256, 128, 64, 32, 16, 8)
CPU_BATCH = 128
SMALLEST_BATCH = 256  # microbatches are preferred to smaller batches, which have few negatives
REMATS = ("none", "dots", "dots_no_batch", "full")
MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)
STATE_SHARE = 0.4  # the fraction of a device's memory above which the state is split over devices
PROBE_IMAGES = 100_000  # images between two probes
CPU_SIZE, LARGEST_SIZE = 64, 224  # pixels
MOST_PATCHES = 1024  # images that would have more patches are resized
AUTOMATIC_EPOCHS = 100.0  # the length of a run for which neither recipe nor length is given


class Choice(NamedTuple):
    """A chosen setting: its dotted key, its value and the reason for it."""

    key: str
    value: Any
    reason: str


def recipe_for(devices: Devices) -> str:
    """Return the recipe: ``small`` for a CPU, else ``vit_b`` or ``vit_s`` by the total device
    memory."""
    if devices.platform == "cpu":
        return "small"
    memory = (devices.memory or 0) * devices.count
    return "vit_b" if memory >= FOR_VIT_B else "vit_s"


def choose(
    config: ConfigDict,
    given: Collection[str],
    devices: Devices,
    found: Survey | None,
    stored: bool = False,
) -> list[Choice]:
    """Choose settings for the devices, data and time limit, and return the choices to print.

    Args:
        config: The configuration of a recipe or a run directory; changed in place.
        given: The dotted keys that the command line sets, which are not changed. If one of these
            keys sets a duration, the keys for the same duration in other units are not changed
            either.
        devices: The number, kind and memory of the devices.
        found: The result of the survey of the data; None to leave the data settings unchanged.
        stored: Whether ``config`` comes from a run directory, so that only `DEVICE_KEYS` may
            change.
    """
    choices: list[Choice] = []

    def take(key: str, value: Any, reason: str) -> None:
        units = next((keys for keys in DURATIONS if key in keys), (key,))
        if any(is_given(unit, given) for unit in units) or (stored and key not in DEVICE_KEYS):
            return
        if value_of(config, key) != value or key in ("batch_size", "model.remat", "model.dtype"):
            choices.append(Choice(key, value, reason))
        with config.ignore_type():
            config.update_from_flattened_dict({key: value})

    if found is not None:
        for choice in data_choices(config, given, devices, found):
            take(*choice)
    if devices.bfloat16:
        take("model.dtype", "bfloat16", f"{devices.kind} has bfloat16 units")
    else:
        cpu = devices.platform == "cpu"
        why = "computes float32 faster than bfloat16" if cpu else "has no bfloat16 units"
        take("model.dtype", "float32", f"{devices.kind} {why}")
    if config.total_minutes is not None:
        minutes = round(min(30.0, max(config.total_minutes / 20, 0.5)), 2)
        take(
            "checkpoint.every_minutes",
            minutes,
            "a killed run loses at most about 5 % of its time, or half a minute if that is longer",
        )
        warm = [key for key in ("steps", "epochs", "examples") if config.optimizer[f"warmup_{key}"]]
        for unit in warm:
            take(f"optimizer.warmup_{unit}", None, "replaced by optimizer.warmup_share")
        if warm:
            take("optimizer.warmup_share", 0.05, "a timed run has no fixed number of steps")
    for choice in memory_choices(config, given, devices, found, stored):
        take(*choice)
    return choices


def data_choices(
    config: ConfigDict, given: Collection[str], devices: Devices, found: Survey
) -> Iterator[Choice]:
    """Yield the settings that depend on the data, such as the data source, image size and patch
    size.

    If the command line sets the image size or the patch size, the other one is chosen to match it.
    """
    yield Choice("data.source", found.source, "detected from the files in data.path")
    largest = CPU_SIZE if devices.platform == "cpu" else LARGEST_SIZE
    own_size, own_patch = (is_given(key, given) for key in ("data.image_size", "model.patch_size"))
    sides_of_data = as_size(config.data.image_size) if own_size else found.shape
    height, width = sides_of_data or (largest, largest)
    if own_patch:
        refuse("model.patch_size", config.model.patch_size, RECIPE["model"]["patch_size"])
    patch = config.model.patch_size if own_patch else patch_of(height, width)
    whole = height % patch == width % patch == 0
    few_patches = (height // patch) * (width // patch) <= MOST_PATCHES
    fits = max(height, width) <= LARGEST_SIZE and few_patches and whole
    if own_size or (found.shape and fits):
        size: Any = height if height == width else (height, width)
        why = f"the images have {height} x {width} pixels"
    else:
        side, unit = min(found.side or largest, largest), patch if own_patch else 16
        size = max(side // unit * unit, unit)
        height = width = size
        patch = patch if own_patch else patch_of(height, width)
        sides = f"the shorter image side is about {found.side} pixels" if found.side else ""
        cpu = devices.platform == "cpu"
        limit = f"at most {largest} pixels on a CPU" if cpu else "the image size of the recipes"
        why = sides if size < largest and sides else limit
    yield Choice("data.image_size", size, why)
    yield Choice("model.patch_size", patch, f"{height // patch} x {width // patch} patches")
    if found.labeled and all(value_of(config, key) is None for key in PROBE):
        epochs = max(1.0, PROBE_IMAGES / (found.images or PROBE_IMAGES))
        yield Choice("probe.every_epochs", float(round(epochs)), "the data is labeled")
    decodes = "prediction" in reads(config.objective.to_dict())  # which figures require
    if decodes and not config.figures.every_steps and found.source != "shapes":
        yield Choice("figures.every_steps", 1000, "to show reconstructions during the run")


def patch_of(height: int, width: int) -> int:
    """Return a patch size in pixels that divides both sides of an image.

    The patch size is 16 if 16 divides both sides and the shorter side has at least 8 patches.
    Otherwise the patch size is a common divisor of both sides, at most a quarter of their greatest
    common divisor. The divisor is chosen so that the number of patches along the shorter side is
    closest to 8.
    """
    side, both = min(height, width), math.gcd(height, width)
    if both % 16 == 0 and side >= 128:
        return 16
    sizes = [size for size in range(1, max(both // 4, 1) + 1) if both % size == 0]
    return min(sizes, key=lambda size: (abs(side / size - 8), size))


def memory_choices(
    config: ConfigDict,
    given: Collection[str],
    devices: Devices,
    found: Survey | None,
    stored: bool,
) -> Iterator[Choice]:
    """Yield the mesh, batch size, microbatches and remat policy that fit the device memory."""
    plan = config.copy_and_resolve_references()
    plan.data.path = plan.data.path or "-"
    count, limit = devices.count, devices.memory
    mesh = plan.mesh
    with plan.ignore_type():
        mesh.tensor = math.gcd(max(mesh.tensor, 1), count)
        mesh.fsdp = math.gcd(max(mesh.fsdp, 1), count // mesh.tensor)
        mesh.data = -1
    checked = resolve(plan)
    parameters = parameter_count(checked)
    constant = constant_bytes(checked, parameters, count)
    free = not (is_given("mesh.fsdp", given) or is_given("mesh.data", given))
    if free and limit and constant > STATE_SHARE * limit and mesh.fsdp == 1:
        mesh.fsdp = math.gcd(count // mesh.tensor, 8)
    yield Choice("mesh.tensor", mesh.tensor, f"{count} devices")
    yield Choice("mesh.fsdp", mesh.fsdp, f"{parameters / 1e6:.0f} million parameters")
    yield Choice("mesh.data", -1, "all remaining devices")
    fixed = stored or is_given("batch_size", given)
    microbatches = plan.accumulation.microbatches
    # The results of a run with microbatch negatives depend on the number of microbatches.
    keeps = is_given("accumulation.microbatches", given) or (
        stored and plan.accumulation.negatives == "microbatch"
    )
    batch, remat, parts = fit(
        plan, parameters, devices, found, fixed,
        (plan.model.remat,) if is_given("model.remat", given) else REMATS,
        (microbatches,) if keeps else MICROBATCHES,
    )  # fmt: skip
    with plan.ignore_type():
        plan.batch_size, plan.model.remat, plan.accumulation.microbatches = batch, remat, parts
    if limit is None:
        memory = "the memory size of the devices is unknown"
    elif not can_estimate(plan):
        memory = f"the memory that the backbone {plan.model.backbone} needs is unknown"
    else:
        need = step_bytes(resolve(plan), parameters, count)
        memory = f"uses an estimated {gib(need)} of {gib(limit)} per device"
    why = f"at most {CPU_BATCH} on a CPU" if devices.platform == "cpu" else memory
    if not fixed and found and found.images and batch <= found.images // 4 < 2 * batch:
        why += f"; at most a quarter of the {found.images} images"
    rate = peak_learning_rate(plan)
    yield Choice("batch_size", batch, f"{why}; the peak learning rate is {rate:.3g}")
    yield Choice("accumulation.microbatches", parts, memory)
    yield Choice("model.remat", remat, memory)


def fit(
    config: ConfigDict,
    parameters: int,
    devices: Devices,
    found: Survey | None,
    fixed: bool,
    remats: Sequence[str] = REMATS,
    microbatches: Sequence[int] = MICROBATCHES,
) -> tuple[int, str, int]:
    """Return a batch size, remat policy and number of microbatches that fit the device memory.

    Combinations of the three settings are tried in this order:

    - Batches of at least `SMALLEST_BATCH`, the largest first, with the fewest microbatches and each
      of the first three remat policies. If all batches are below `SMALLEST_BATCH`, the first stage
      tries only the largest batch.

    - The smallest batch tried so far, with more microbatches and all remat policies but the first.

    - All batches, the largest first, with the fewest microbatches and the last remat policy.

    If no combination fits, the smallest batch is returned, with the fewest microbatches and the
    last remat policy. On a CPU, with unknown memory, or if `can_estimate` is False, only the batch
    size is chosen.

    Args:
        config: The configuration, which is left unchanged.
        parameters: The number of parameters of the network.
        devices: The number, kind and memory of the devices.
        found: The result of the survey of the data, whose number of images limits the batch size;
            None for no such limit.
        fixed: Whether to keep the batch size of ``config``.
        remats: The allowed remat policies, from the least recomputation to the most.
        microbatches: The allowed numbers of microbatches, in ascending order.
    """
    count, limit = devices.count, devices.memory
    most = config.batch_size
    if not fixed and found is not None and found.images:
        most = min(most, max(found.images // 4, 8))
    if fixed:
        batches: list[int] = [most]
    else:
        largest = min(most, CPU_BATCH) if devices.platform == "cpu" else most
        batches = [size for size in batch_sizes(count) if size <= largest]
    batches = batches or [max(most // count, 1) * count]
    if devices.platform == "cpu" or limit is None or not can_estimate(config):
        return batches[0], config.model.remat, config.accumulation.microbatches
    trial = resolve(config)

    def fits(batch: int, remat: str, parts: int) -> bool:
        if batch % (count * parts) or batch // parts < 2 * count:
            return False
        trial.batch_size, trial.model.remat = batch, remat
        trial.accumulation.microbatches = parts
        return step_bytes(trial, parameters, count) <= limit

    large = [size for size in batches if size >= SMALLEST_BATCH] or batches[:1]
    fewest = microbatches[0]
    candidates = [(batch, remat, fewest) for batch in large for remat in remats[:3]]
    cheaper = remats[1:] or remats
    candidates += [(large[-1], remat, n) for n in microbatches[1:] for remat in cheaper]
    candidates += [(batch, remats[-1], fewest) for batch in batches]
    return next((each for each in candidates if fits(*each)), candidates[-1])


def batch_sizes(devices: int) -> list[int]:
    """Return the batch sizes to choose from, the largest first. Each is a multiple of the number of
    devices.

    The sizes are powers of two. If the number of devices has an odd factor, such as 3, they are
    multiplied by the ratio of that factor to the nearest power of two, such as 3 / 4. So a batch
    can still be split evenly into microbatches. Sizes of less than two images per device are left
    out.
    """
    odd = devices // (devices & -devices)
    nearest = 2 ** round(math.log2(odd))
    sizes = [size * odd // nearest for size in BATCHES if size * odd % (nearest * devices) == 0]
    return [size for size in sizes if size >= 2 * devices]


def what_fits(config: ConfigDict, devices: Devices) -> str:
    """Return command-line options with which a step that ran out of memory should fit.

    If no options are expected to fit, return advice to reduce the model or the images instead.

    Args:
        config: The resolved configuration of the step that ran out of memory.
        devices: The number, kind and memory of the devices.
    """
    if not can_estimate(config):
        return "a smaller config.batch_size or more config.accumulation.microbatches need less"
    parameters = parameter_count(config)
    needed = step_bytes(config, parameters, devices.count)
    # The step did not fit, so the estimate may be too low. Allow only 80 % of the memory that it
    # assigns to activations.
    constant = constant_bytes(config, parameters, devices.count)
    limit = min(devices.memory or needed, constant + int(0.8 * (needed - constant)))
    devices = dataclasses.replace(devices, platform="gpu", memory=limit)
    kept = fit(config, parameters, devices, None, fixed=True)
    trial = config.copy_and_resolve_references()
    trial.batch_size = max(config.batch_size // 2, devices.count)
    trial.accumulation.microbatches = 1
    candidates = [kept]
    with contextlib.suppress(UserError):  # an objective can require a larger batch
        candidates.append(fit(trial, parameters, devices, None, fixed=False))
    options = []
    for batch, remat, parts in dict.fromkeys(candidates):
        trial.batch_size, trial.model.remat = batch, remat
        trial.accumulation.microbatches = parts
        if step_bytes(trial, parameters, devices.count) <= limit:
            options.append(
                f"--config.batch_size={batch} --config.accumulation.microbatches={parts} "
                f"--config.model.remat={remat}"
            )
    if not options:
        return "no smaller batch is expected to fit: choose a smaller model or smaller images"
    line = f"expected to fit: {', or '.join(options)}"
    if config.accumulation.negatives == "microbatch":
        line += "; with accumulation.negatives=microbatch, each microbatch has its own negatives"
    return line
