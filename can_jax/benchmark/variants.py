"""A benchmark of variants of the train step, compared with PyTorch, on one device."""

import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from ml_collections import ConfigDict

from can_jax.benchmark.step import (
    PEER_WORK,
    CompiledStep,
    Turn,
    baseline_step,
    model_name,
    our_step,
)
from can_jax.config.baselines import changed
from can_jax.config.resolve import resolve
from can_jax.distributed.hardware import matmul_flops, peak_flops
from can_jax.train.flops import train_flops_per_image
from can_jax.utils.errors import UserError, one_line

Result = dict[str, Any]
# The variant that does the same work as the PyTorch step. It omits color augmentation, which
# PyTorch users apply in the workers of their input pipeline.
SAME_WORK = "the work of PyTorch"
PEERS = {"PyTorch": False, "PyTorch, compiled": True}  # whether `torch.compile` is used
COMPILERS = 4  # programs compiled at a time
TURNS_SECONDS = 30.0  # the time reserved for the first measurement of the compiled programs
Describe = Callable[[CompiledStep], Result]


def measure_variants(
    recipe: ConfigDict,
    variants: Mapping[str, dict[str, Any]],
    *,
    peers: bool,
    rounds: int,
    seconds: float,
    product: int,
    describe: Describe,
    report: Callable[[Result], None],
    left: Callable[[], float],
) -> None:
    """Measure the throughput of variants of the train step, and optionally of PyTorch.

    If a variant fails, for example by running out of memory, the error is stored in its result and
    the other variants are still measured. A variant is measured only if it is compiled at least
    `TURNS_SECONDS` before the time limit.

    Args:
        recipe: The configuration of a recipe, not yet resolved.
        variants: For each variant, by name, a dict of the changed settings by dotted configuration
            key.
        peers: Whether to also measure PyTorch with and without `torch.compile`, and a variant named
            `SAME_WORK` that performs the same computation as PyTorch.
        rounds: The number of rounds after the first round. Each round measures every variant once.
        seconds: The duration of each measurement in seconds.
        product: The number of rows of the square matrices whose product is timed in each round
            except the first.
        describe: A function that returns results for a compiled step, which are stored with the
            measurements of that step.
        report: A function that is called with all results so far whenever a new result is
            available.
        left: A function that returns how many seconds remain for the benchmark. Measurements are
            skipped once no time remains.

    Raises:
        UserError: A changed setting is invalid; or ``peers`` is True, and either PyTorch is not
            installed or a setting has no counterpart in the PyTorch baseline.
    """
    if peers:
        variants = {**variants, SAME_WORK: PEER_WORK}
    configs = {name: resolve(changed(recipe, changes)) for name, changes in variants.items()}
    config = next(iter(configs.values()))
    results: dict[str, Result] = {name: {} for name in configs}
    whole: Result = {
        "model": model_name(config),
        "batch_size": config.batch_size,
        "dtype": config.model.dtype,
        "peak_flops": peak_flops(config.model.dtype),
        "steps": results,
    }
    turns: dict[str, Turn] = {}

    def build(name: str) -> None:
        try:
            ours = our_step(configs[name])
        except Exception as error:  # JAX raises many types, for example for a lack of memory.
            results[name].setdefault("error", one_line(error)[:300])
            return
        if "error" in results[name]:  # The time limit has passed meanwhile.
            return
        turns[name] = ours.turn
        results[name] |= {
            "changes": variants[name],
            "analytic_flops_per_image": train_flops_per_image(configs[name]),
            "compile_seconds": ours.compile_seconds,
            "planned_memory_bytes": ours.planned_memory,
        }
        try:
            results[name] |= describe(ours)
        except Exception as error:  # Without its description, a step is still measured.
            results[name]["description"] = one_line(error)[:300]

    pool = ThreadPoolExecutor(COMPILERS)
    futures = {pool.submit(build, name): name for name in configs}
    done, late = wait(futures, timeout=max(left() - TURNS_SECONDS, 0))
    pool.shutdown(wait=False, cancel_futures=True)
    for future in late:
        results[futures[future]] = {"error": "no time was left to compile this variant"}
    for future in done:
        future.result()
    report(whole)
    take_turns(turns, results, seconds, left)  # First results, in case PyTorch takes long.
    report(rated(whole))
    for name, compiled in PEERS.items() if peers else ():
        results[name] = {}
        try:
            turns[name], results[name]["version"] = baseline_step(configs[SAME_WORK], compiled)
            take_turns({name: turns[name]}, results, seconds, left)
        except UserError:
            raise
        except Exception as error:  # PyTorch raises many types, such as OutOfMemoryError.
            results[name]["error"] = one_line(error)[:300]
        report(rated(whole))
    for _ in range(rounds):
        if left() < 0:
            whole["stopped"] = "no time was left for further measurements"
            break
        rate = matmul_flops(config.model.dtype, product)
        whole.setdefault("measured_product_flops", []).append(rate)
        take_turns(turns, results, seconds, left)
        report(rated(whole))


def take_turns(
    turns: Mapping[str, Turn],
    results: dict[str, Result],
    seconds: float,
    left: Callable[[], float],
) -> None:
    """Measure each step once; append the images per second to the list ``rates`` in the step's
    result.

    Measurements are skipped when no time is left. If a measurement fails, for example for lack of
    memory, the result holds ``error`` with the message.
    """
    for name, turn in turns.items():
        if left() > 0 and "error" not in results[name]:
            try:
                results[name].setdefault("rates", []).append(turn(seconds))
            except Exception as error:
                results[name]["error"] = one_line(error)[:300]


def rated(whole: Result) -> Result:
    """Add median throughputs, MFU and the speedup over PyTorch to the results ``whole``.

    Return ``whole``.
    """
    steps = whole["steps"]
    for step in steps.values():
        if rates := step.get("rates"):
            step["images_per_second"] = statistics.median(rates)
            step["milliseconds"] = 1000 * whole["batch_size"] / step["images_per_second"]
            if flops := step.get("analytic_flops_per_image"):
                step["mfu"] = step["images_per_second"] * flops / whole["peak_flops"]
    ours = steps.get(SAME_WORK, {})
    for name in PEERS:
        theirs = steps.get(name, {})
        if theirs.get("rates") and ours.get("rates"):
            flops = ours["analytic_flops_per_image"]
            theirs["mfu"] = theirs["images_per_second"] * flops / whole["peak_flops"]
            # Both lists end with the rates of the same rounds.
            pairs = zip(reversed(ours["rates"]), reversed(theirs["rates"]), strict=False)
            ratios = [mine / other for mine, other in pairs]
            whole.setdefault("ratio", {})[name] = statistics.median(ratios)
    return whole
