"""A plan as tables for a person, and as JSON."""

import collections
from typing import Any

from ml_collections import ConfigDict
from rich.table import Table

from can_jax.distributed.hardware import GIB
from can_jax.monitoring.console import duration, fact_table
from can_jax.plan.estimate import Plan
from can_jax.plan.hlo import Collective, bytes_of
from can_jax.plan.search import Attempt
from can_jax.plan.topology import Topology

IMAGENET = 1_281_167  # images of an epoch


def gib(size: int | float) -> str:
    """Bytes as a person reads them."""
    return f"{size / GIB:.2f} GiB"


def rounded(value: float) -> str:
    """An estimate with the three digits that it deserves at most."""
    return f"{float(f'{value:.3g}'):,.0f}"


def length(config: ConfigDict, examples: int) -> int:
    """Images of the whole run; an epoch has so many ``examples``."""
    if config.total_steps is not None:
        return config.total_steps * config.batch_size
    if config.total_epochs is not None:
        return round(config.total_epochs * examples)
    return config.total_examples


def by_kind(moved: list[Collective]) -> list[dict[str, Any]]:
    """Collectives of one kind over the same axes together, the most bytes first."""
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
    plan: Plan, config: ConfigDict, topology: Topology, mfu: float, examples: int
) -> dict[str, Any]:
    """All figures of a plan; sizes in bytes, of one device, times in seconds."""
    memory, images = plan.memory, length(config, examples)
    rate = config.batch_size / plan.step_seconds
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
        "assumed": {
            "mfu": mfu,
            "peak_flops": topology.chip.peak_flops,
            "link_bytes_per_second": topology.chip.link,
            "network_bytes_per_second": topology.chip.network,
            "examples_of_an_epoch": examples,
        },
    }


def tables(found: dict[str, Any], topology: Topology) -> list[Table]:
    """What `as_json` gives, for a person."""
    memory, assumed = found["bytes_per_device"], found["assumed"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    verdict = "fits" if found["fits"] else "DOES NOT FIT"
    facts = {
        "devices": f"{found['devices']} x {found['device']}",
        "mesh": mesh,
        "batch": f"{found['batch_size']:,} images",
        "microbatches": found["microbatches"],
        "parameters": f"{found['parameters']:,}",
        "memory of a device": f"{gib(memory['total'])} of {gib(memory['limit'])}: {verdict}",
        "  parameters": gib(memory["parameters"]),
        "  optimizer": gib(memory["optimizer"]),
        "  temporaries": gib(memory["temporaries"]),
        "to spare": gib(memory["spare"]),
        "FLOPs of an image": f"{found['flops_per_image']:.3e}, analytic",
        "computed again": f"{found['recomputed_flops_per_image']:.3e} (remat {found['remat']})",
        "compiled in": f"{found['compile_seconds']:.0f} s",
    }
    if not topology.exact:
        facts["temporaries are"] = "those of the CPU compiler: more than on the real device"
    if found["fits"]:
        facts |= {
            "step": f"{found['step_seconds']:.3g} s: {found['compute_seconds']:.3g} s computing, "
            f"{found['communication_seconds']:.3g} s sending, if nothing overlaps",
            "images/s": rounded(found["images_per_second"]),
            "the whole run": f"{found['images']:,} images, {duration(found['days'] * 86400)}, "
            f"{rounded(found['chip_hours'])} device-hours",
            "assuming": f"{100 * assumed['mfu']:.0f} % of {assumed['peak_flops'] / 1e12:.0f} "
            f"TFLOP/s, links of {assumed['link_bytes_per_second'] / 1e9:.0f} GB/s, between "
            f"slices or hosts {assumed['network_bytes_per_second'] / 1e9:.1f} GB/s",
        }
    found_tables = [fact_table(f"Plan: {found['topology']}", facts)]
    if found["collectives"]:
        table = Table("collective", "axes", "times", "bytes", "largest", title="Sent in a step")
        for row in found["collectives"]:
            size = f"{row['bytes'] / 2**20:,.2f} MiB"
            table.add_row(row["kind"], row["axes"], str(row["count"]), size, row["largest"])
        found_tables.append(table)
    return found_tables


def attempt_line(attempt: Attempt) -> str:
    """One choice that was compiled."""
    plan, choice = attempt.plan, attempt.choice
    shape = "x".join(map(str, choice.mesh))
    verdict = f"fits, {plan.step_seconds:.3f} s a step" if plan.fits else "does not fit"
    return (
        f"remat {choice.remat}, {choice.microbatches} microbatches, mesh {shape}: "
        f"{gib(plan.memory.total)}, {verdict}"
    )


def attempts_table(rows: list[dict[str, Any]]) -> Table:
    """What was tried, as `attempts_as_json` orders it."""
    table = Table("remat", "microbatches", "mesh", "memory", "step", title="Tried, best first")
    for row in rows:
        step = f"{row['step_seconds']:.3g} s" if row["fits"] else "does not fit"
        mesh = " x ".join(map(str, row["mesh"].values()))
        table.add_row(row["remat"], str(row["microbatches"]), mesh, gib(row["bytes"]), step)
    return table


def attempts_as_json(attempts: list[Attempt]) -> list[dict[str, Any]]:
    """What was tried, the best first: what fits by the time of a step, then by memory."""

    def order(attempt: Attempt) -> tuple[bool, float]:
        plan = attempt.plan
        return not plan.fits, plan.step_seconds if plan.fits else plan.memory.total

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
