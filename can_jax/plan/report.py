"""The formatting of a plan as tables and as JSON."""

import collections
import dataclasses
from typing import Any

from ml_collections import ConfigDict
from rich.table import Table

from can_jax.distributed.hardware import GIB
from can_jax.distributed.runtime import version_of
from can_jax.monitoring.console import duration, fact_table
from can_jax.plan.charges import Charge, Estimate
from can_jax.plan.clocks import Clock, clock_of
from can_jax.plan.estimate import Plan
from can_jax.plan.hlo import Collective, bytes_of
from can_jax.plan.search import Attempt
from can_jax.plan.topology import Topology

COMPILERS = (
    "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "jax-cuda12-plugin",
    "nvidia-cudnn-cu12",
)  # fmt: skip
TRAFFIC = ("memory_traffic_bytes", "memory_traffic_outside_products_bytes")
LISTED = 20  # The maximum number of instructions with uncertain times in a table.
IMAGENET = 1_281_167  # The number of images in an epoch of ImageNet-1k.


def gib(size: int | float) -> str:
    """Format a number of bytes in GiB."""
    return f"{size / GIB:.2f} GiB"


def rounded(value: float) -> str:
    """Format a number as an integer rounded to three significant digits, with thousands
    separators."""
    return f"{float(f'{value:.3g}'):,.0f}"


def length(config: ConfigDict, examples: int, rate: float) -> int:
    """Return the number of images that the whole run processes. An image counts once per epoch.

    Args:
        config: The configuration of the planned run.
        examples: The number of images in an epoch.
        rate: The expected throughput in images per second, used only if `total_minutes` is set.
    """
    if config.total_minutes is not None:
        return round(60 * config.total_minutes * rate)
    if config.total_steps is not None:
        return config.total_steps * config.batch_size
    if config.total_epochs is not None:
        return round(config.total_epochs * examples)
    return config.total_examples


def by_kind(moved: list[Collective]) -> list[dict[str, Any]]:
    """Sum the collectives by kind and mesh axes; return a row for each sum, the largest first."""
    groups: dict[tuple[str, str], list[Collective]] = collections.defaultdict(list)
    for collective in moved:
        groups[collective.kind, collective.axes].append(collective)
    rows = []
    for (kind, axes), members in groups.items():
        largest = max((array for c in members for array in c.arrays), key=bytes_of)
        rows.append(
            {
                "kind": kind,
                "axes": axes,
                "devices": members[0].devices,
                "count": sum(collective.times for collective in members),
                "bytes": sum(collective.times * collective.bytes for collective in members),
                "largest": largest,
            }
        )
    return sorted(rows, key=lambda row: -row["bytes"])


def as_json(
    plan: Plan,
    config: ConfigDict,
    topology: Topology,
    mfu: float,
    examples: int,
    top: int = 0,
) -> dict[str, Any]:
    """Return all values of a plan, as `can-jax plan --json` prints them.

    Memory and the results of collectives are in bytes per device. Times are in seconds unless the
    key names another unit.

    Args:
        plan: The plan.
        config: The configuration of the planned run.
        topology: The devices for which the step was compiled.
        mfu: The model FLOPs utilization, above 0 and at most 1, to assume if no times are
            estimated.
        examples: The number of images in an epoch.
        top: The number of slowest instructions to list; 0 for none.
    """
    rate = config.batch_size / plan.step_seconds
    memory, images = plan.memory, length(config, examples, rate)
    return {
        "fits": plan.fits,
        "topology": topology.name,
        "slices": topology.slices,
        "devices": len(topology.devices),
        "device": topology.chip.name,
        "mesh": plan.mesh,
        "batch_size": config.batch_size,
        "remat": config.model.remat,
        "microbatches": config.accumulation.microbatches,
        "parameters": plan.parameters,
        "bytes_per_device": {
            "parameters": memory.parameters,
            "optimizer": memory.optimizer,
            "temporaries": memory.temporaries,
            "total": memory.total,
            "limit": memory.limit,
            "spare": memory.limit - memory.total,
        },
        "flops_per_image": plan.flops_per_image,
        "recomputed_flops_per_image": plan.recomputed_flops_per_image,
        "collectives": by_kind(plan.collectives),
        "compile_seconds": plan.compile_seconds,
        "compute_seconds": plan.compute_seconds,
        "communication_seconds": plan.communication_seconds,
        "step_seconds": plan.step_seconds,
        "images_per_second": rate,
        "images": images,
        "days": images / rate / 86400,
        "chip_hours": images / rate / 3600 * len(topology.devices),
        **clock_as_json(plan, config, topology, top),
        "versions": {name: version_of(name) for name in COMPILERS},
        "assumed": {
            "mfu": mfu if plan.estimate is None else None,
            "peak_flops": topology.chip.peak_flops,
            "link_bytes_per_second": topology.chip.link,
            "network_bytes_per_second": topology.chip.network,
            "examples_of_an_epoch": examples,
        },
    }


def clock_as_json(plan: Plan, config: ConfigDict, topology: Topology, top: int) -> dict[str, Any]:
    """Return the time estimate of a plan as JSON values.

    Without an estimate, the times, MFU, parts, kernels and memory traffic are None, and all other
    keys are omitted.

    Args:
        plan: The plan.
        config: The configuration of the planned run.
        topology: The devices for which the step was compiled.
        top: The number of slowest instructions to list; 0 for none.
    """
    estimate, clock = plan.estimate, clock_of(topology.chip)
    if estimate is None or clock is None or plan.calibration is None:
        names = ("estimated_seconds", "expected_seconds", "estimated_mfu", "parts", "kernels")
        return dict.fromkeys((*names, *TRAFFIC))
    peak = len(topology.devices) * topology.chip.peak_flops
    unknown = estimate.unknown()
    if clock.hertz is None:  # No compiler estimates exist, so only notes mark uncertain times.
        unknown = [charge for charge in unknown if charge.note]
    return {
        "estimated_seconds": estimate.seconds,
        "expected_seconds": plan.step_seconds,
        "estimated_mfu": config.batch_size * plan.flops_per_image / (peak * estimate.seconds),
        "parts": estimate.parts(),
        "kinds": estimate.kinds(),
        "bases": estimate.bases(),
        "kernels": estimate.kernels,
        **(gpu_as_json(estimate, clock) if clock.hertz is None else {}),
        "unestimated": [charge_as_json(charge) for charge in unknown],
        "clock_hertz": clock.hertz,
        "clock_source": clock.source,
        "calibration": dataclasses.asdict(plan.calibration),
        **({"top": [charge_as_json(charge) for charge in estimate.top(top)]} if top else {}),
    }


def gpu_as_json(estimate: Estimate, clock: Clock) -> dict[str, Any]:
    """Return the FLOPs of a step on a GPU, the memory traffic, and the time that the traffic
    takes."""
    traffic = estimate.traffic, estimate.traffic_outside_products
    return {
        **dict(zip(TRAFFIC, traffic, strict=True)),
        "memory_seconds": estimate.traffic / clock.memory_bandwidth,
        "flops": sum(charge.flops * charge.times for charge in estimate.charges),
    }


def charge_as_json(charge: Charge) -> dict[str, Any]:
    """Return the estimate of an instruction as JSON values, summed over all executions."""
    return {
        "instruction": charge.name,
        "opcode": charge.opcode,
        "part": charge.part,
        "kind": charge.kind,
        "seconds": charge.total,
        "times": charge.times,
        "basis": charge.basis,
        "line": charge.line,
        "note": charge.note,
        "bytes": charge.moved * charge.times,
        "flops": charge.flops * charge.times,
    }


def tables(values: dict[str, Any], topology: Topology) -> list[Table]:
    """Return the values of `as_json` as tables for the console."""
    memory, assumed = values["bytes_per_device"], values["assumed"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in values["mesh"].items())
    verdict = "fits" if values["fits"] else "DOES NOT FIT"
    facts = {
        "devices": f"{values['devices']} x {values['device']}",
        "mesh": mesh,
        "batch": f"{values['batch_size']:,} images",
        "microbatches": values["microbatches"],
        "parameters": f"{values['parameters']:,}",
        "memory of a device": f"{gib(memory['total'])} of {gib(memory['limit'])}: {verdict}",
        "  parameters": gib(memory["parameters"]),
        "  optimizer": gib(memory["optimizer"]),
        "  temporaries": gib(memory["temporaries"]),
        "to spare": gib(memory["spare"]),
        "FLOPs per image and step": f"{values['flops_per_image']:.3e}",
        "  recomputed": f"{values['recomputed_flops_per_image']:.3e} (remat {values['remat']})",
        "compiled in": f"{values['compile_seconds']:.0f} s",
    }
    if not topology.exact:
        facts["note"] = (
            "the program for CPU devices usually needs more memory than that for the real devices"
        )
        if topology.stand_in:
            facts["to plan exactly"] = topology.stand_in
    if values["fits"]:
        facts |= clock_facts(values)
        facts |= {
            "images/s": rounded(values["images_per_second"]),
            "the whole run": f"{values['images']:,} images, {duration(values['days'] * 86400)}, "
            f"{rounded(values['chip_hours'])} device-hours",
            "assuming": f"{_peak(values)}, "
            f"{assumed['link_bytes_per_second'] / 1e9:.0f} GB/s over fast links, "
            f"{assumed['network_bytes_per_second'] / 1e9:.1f} GB/s between slices or hosts",
        }
    result = [fact_table(f"Plan: {values['topology']}", facts)]
    if values["collectives"]:
        table = Table("collective", "axes", "times", "bytes", "largest", title="Sent in a step")
        for row in values["collectives"]:
            size = f"{row['bytes'] / 2**20:,.2f} MiB"
            table.add_row(row["kind"], row["axes"], str(row["count"]), size, row["largest"])
        result.append(table)
    if values["parts"]:
        result.append(parts_table(values))
    if uncertain := values.get("unestimated"):
        title = "Instructions whose time is uncertain"
        if len(uncertain) > LISTED:
            title += f": the slowest {LISTED} of {len(uncertain)}; --json lists all"
        result.append(instructions_table(title, uncertain[:LISTED]))
    if values.get("top"):
        result.append(instructions_table("The most expensive instructions", values["top"]))
    return result


def clock_facts(values: dict[str, Any]) -> dict[str, str]:
    """Return the rows of a plan's table that describe the time of a step."""
    versions = ", ".join(
        f"{name} {version}" for name, version in values["versions"].items() if version
    )
    if values["estimated_seconds"] is None:
        return {
            "step": f"{values['step_seconds']:.3g} s without overlap: "
            f"{values['compute_seconds']:.3g} s of computation, "
            f"{values['communication_seconds']:.3g} s of communication",
            "basis": "the FLOPs at an assumed utilization; the step was compiled for a CPU",
            "versions": versions,
        }
    calibration = values["calibration"]
    if values["clock_hertz"] is None:
        basis = "a roofline of each kernel"
    else:
        basis = f"the compiler's cycles at {values['clock_hertz'] / 1e9:.2f} GHz"
    facts = {}
    if traffic := values.get(TRAFFIC[0]):
        facts["memory traffic"] = (
            f"{traffic / 1e9:.1f} GB, of which {values[TRAFFIC[1]] / 1e9:.1f} GB outside matrix "
            "products"
        )
    return {
        "step, estimated": f"{1e3 * values['estimated_seconds']:.1f} ms by {basis}: "
        f"{values['estimated_mfu']:.1%} MFU",
        "step, expected": f"{1e3 * values['expected_seconds']:.1f} ms: measured steps reach "
        f"{calibration['ratio']} of the estimated speed ({calibration['source']})",
        "kernels": f"{values['kernels']:,}",
        **facts,
        "versions": versions,
    }


def _peak(values: dict[str, Any]) -> str:
    assumed = values["assumed"]
    peak = f"{assumed['peak_flops'] / 1e12:.3g} TFLOP/s"
    return peak if assumed["mfu"] is None else f"{100 * assumed['mfu']:.0f} % of {peak}"


def parts_table(values: dict[str, Any]) -> Table:
    """Return a table of the estimated times of the parts of a step."""
    table = Table("part", "ms", "share", title="The step's parts")
    for name, seconds in values["parts"].items():
        share = seconds / values["estimated_seconds"]
        table.add_row(name.replace("_", " "), f"{1e3 * seconds:.2f}", f"{share:.1%}")
    return table


def instructions_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return a table of instructions with their times in a step and their source lines."""
    table = Table("instruction", "part", "times", "ms", "from", "line", title=title)
    for row in rows:
        table.add_row(
            row["instruction"], row["part"].replace("_", " "), f"{row['times']:,}",
            f"{1e3 * row['seconds']:.3f}", row["note"] or row["basis"], row["line"] or "-",
        )  # fmt: skip
    return table


def attempt_line(attempt: Attempt) -> str:
    """Return one line about an attempt of a search: its settings, memory and step time."""
    plan, choice = attempt.plan, attempt.choice
    shape = "x".join(map(str, choice.mesh))
    verdict = f"fits, {plan.step_seconds:.3f} s a step" if plan.fits else "does not fit"
    return (
        f"remat {choice.remat}, {choice.microbatches} microbatches, mesh {shape}: "
        f"{gib(plan.memory.total)}, {verdict}"
    )


def attempts_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table of the attempts of a search.

    Args:
        rows: The attempts, as returned by `attempts_as_json`.
    """
    table = Table("remat", "microbatches", "mesh", "memory", "step", title="Tried, best first")
    for row in rows:
        step = f"{row['step_seconds']:.3g} s" if row["fits"] else "does not fit"
        mesh = " x ".join(map(str, row["mesh"].values()))
        table.add_row(row["remat"], str(row["microbatches"]), mesh, gib(row["bytes"]), step)
    return table


def attempts_as_json(attempts: list[Attempt]) -> list[dict[str, Any]]:
    """Return the attempts of a search as JSON values, the best first.

    Attempts that fit in memory come first, ordered by the time of a step. Attempts that do not fit
    come last, ordered by memory.
    """

    def order(attempt: Attempt) -> tuple[bool, float]:
        plan = attempt.plan
        return not plan.fits, plan.step_seconds if plan.fits else float(plan.memory.total)

    return [
        {
            "remat": attempt.choice.remat,
            "microbatches": attempt.choice.microbatches,
            "mesh": attempt.plan.mesh,
            "fits": attempt.plan.fits,
            "bytes": attempt.plan.memory.total,
            "step_seconds": attempt.plan.step_seconds if attempt.plan.fits else None,
            "options": attempt.choice.options,
        }
        for attempt in sorted(attempts, key=order)
    ]
