"""`python -m can_jax.benchmark input --path=DIR [--json]`
`python -m can_jax.benchmark step --config=RECIPE [--batch=IMAGES] [--parts] [--peer] [--json]`

`input` measures the images per second of the input pipeline, stage by stage: reading alone,
decoding alone, cropping alone, the whole pipeline on the host, and the pipeline with the transfer
to the device. The baseline is a pipeline that makes two views with Pillow, as is common with
PyTorch; the baseline runs one process for each thread of the measured pipeline. Each round measures
every stage once. The printed limit of Python is the reading throughput at which Python code fully
occupies one core. Since only one thread at a time runs Python code, more cores do not raise the
limit of Python.

`step` measures the images per second of the compiled train step on a batch in device memory. The
model FLOPs utilization (MFU) is relative to the FLOP/s of a matrix product. Each round measures
every train step and the matrix product once. `--parts` also measures the train steps of MAE and
SimCLR, and the cost of each part of CAN's train step. `--peer` also measures the same train step in
PyTorch (`can_jax/benchmark/torch_reference.py`), alternating with can_jax. With `--peer`, CAN's
step omits color jitter, grayscale and blur, and uses the paper's form of the denoising branch, so
that can_jax and PyTorch do the same work.
"""

import json
import shlex
import sys
from typing import Any

from can_jax.benchmark.input import measure_input
from can_jax.benchmark.step import measure_step
from can_jax.cli.command import Command
from can_jax.config.durations import TOTAL, value_of
from can_jax.config.resolve import default_config, resolve
from can_jax.data.sources.registry import SOURCES
from can_jax.monitoring.console import fact_table, plain_console
from can_jax.utils.errors import UserError
from can_jax.utils.jax_config import jax_config
from can_jax.utils.progress import apart, phase

# The flags that only one of the benchmarks reads, by benchmark.
OWN_FLAGS = {
    "input": ("path", "source", "name", "image_size", "batch_size", "threads"),
    "step": ("config", "batch", "peer", "peer_compiled", "parts"),
}
ENCODED = [name for name, kind in SOURCES.items() if kind.holds_files]

COMMAND = Command(__doc__, "SUBJECT")
FLAGS = COMMAND.flags
_PATH = FLAGS.path(
    "path", "For `benchmark input`: the path of the data, as in `config.data.path`.", web=True
)
_SOURCE = FLAGS.choice(
    "source",
    "folder",
    ENCODED,
    "For `benchmark input`: the kind of source, as in `config.data.source`.",
)
_NAME = FLAGS.text(
    "name", None, "For `benchmark input`: the name of a TFDS data set, as in `config.data.name`."
)
_IMAGE_SIZE = FLAGS.integer(
    "image_size",
    224,
    "For `benchmark input`: the side length of the views, in pixels.",
    lower_bound=1,
)
_BATCH_SIZE = FLAGS.integer(
    "batch_size", 64, "For `benchmark input`: the number of images per batch.", lower_bound=1
)
_THREADS = FLAGS.integer(
    "threads",
    None,
    "For `benchmark input`: the number of threads, and of processes of the Pillow baseline; by "
    "default one per core.",
)
_CONFIG = FLAGS.recipe("recipe", prefix="For `benchmark step`: ")
_BATCH = FLAGS.integer(
    "batch",
    None,
    "For `benchmark step`: the number of images per batch; by default that of the recipe.",
    lower_bound=1,
)
_PEER = FLAGS.switch("peer", False, "For `benchmark step`: also measure the baseline in PyTorch.")
_PEER_COMPILED = FLAGS.switch(
    "peer_compiled",
    False,
    "For `benchmark step`: compile the PyTorch baseline of --peer with torch.compile.",
)
_PARTS = FLAGS.switch(
    "parts", False, "For `benchmark step`: also measure MAE, SimCLR, and each part of the step."
)
_ROUNDS = FLAGS.integer(
    "rounds", 5, "The number of repetitions of each measurement.", lower_bound=1
)
_SECONDS = FLAGS.number(
    "seconds", 3.0, "The minimum duration of each repetition, in seconds.", lower_bound=0.1
)
_JSON = FLAGS.switch("json", False, "Print one JSON object instead of a table.")


def measure_input_of_flags() -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the input pipeline; return the results, and the rows of the table to print."""
    config = default_config()
    config.data.update(
        source=_SOURCE.value, path=_PATH.value, name=_NAME.value, threads=_THREADS.value
    )
    with config.ignore_type():
        config.data.image_size = _IMAGE_SIZE.value
    config.batch_size, config.total_steps = _BATCH_SIZE.value, 1
    results = measure_input(resolve(config), _ROUNDS.value, _SECONDS.value)
    rows = {}
    for stage in (
        "reads_alone",
        "decode_only",
        "crops",
        "host_pipeline",
        "to_device",
        "pil_two_view",
    ):
        rate = results[stage]
        rows[stage] = (
            f"{rate:7.0f} images/s   {rate / results['threads']:6.0f} per thread   "
            f"{rate / results['pil_two_view']:5.2f} x Pillow"
        )
    rows["reads_alone, limit of Python"] = f"{results['python_limit']:7.0f} images/s"
    rows["host_pipeline / decode_only"] = f"{results['host_pipeline'] / results['decode_only']:.2f}"
    return results, rows


def measure_step_of_flags() -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the train step; return the results, and the rows of the table to print."""
    recipe = _CONFIG.read()
    if _PEER_COMPILED.value and not _PEER.value:
        raise UserError("--peer_compiled has no effect without --peer: add --peer")
    recipe.data.path = recipe.data.path or "-"  # No data is read.
    if _BATCH.value is not None:
        recipe.batch_size = _BATCH.value
    if all(value_of(recipe, key) is None for key in TOTAL):
        recipe.total_steps = 1
    results = measure_step(
        recipe, rounds=_ROUNDS.value, seconds=_SECONDS.value, peer=_PEER.value,
        peer_compiled=_PEER_COMPILED.value, parts=_PARTS.value,
    )  # fmt: skip
    rows = {
        "images per second": f"{results['images_per_second']:.2f}",
        "analytic FLOPs per image": f"{results['analytic_flops_per_image']:.3e}",
        "FLOPs per image, counted by the compiler": f"{results['counted_flops_per_image']:.3e}",
        f"a {results['dtype']} matrix product, FLOP/s": f"{results['measured_peak_flops']:.3e}",
        "MFU relative to the matrix product": f"{results['mfu_of_measured_peak']:.1%}",
        "peak memory per device, bytes": f"{results['peak_memory_bytes']:.3e}",
        "compiled in": f"{results['compile_seconds']:.1f} s",
        "devices": ", ".join(results["environment"]["devices"]),
    }
    if _PEER.value:
        rows[results["peer"]] = f"{results['peer_images_per_second']:.2f} images per second"
        rows["can_jax / PyTorch"] = f"{results['ratio']:.2f}"
    if _PARTS.value:
        whole = results["milliseconds"]["can"]
        for name, value in results["milliseconds"].items():
            part = f"   {1 - value / whole:6.1%} of the step" if "without" in name else ""
            rows[f"{name}, ms per step"] = f"{value:.1f}{part}"
        for name, value in results["simclr_over_can"].items():
            rows[f"SimCLR / CAN, {name.replace('_', ' ')}"] = f"{value:.2f}"
    return results, rows


@COMMAND.runs
def main(subject: str) -> None:
    """Run the benchmark that ``subject`` names, `input` or `step`, and print its results."""
    measures = {"input": measure_input_of_flags, "step": measure_step_of_flags}
    if subject not in measures:
        raise UserError(f"unknown benchmark {subject!r}: choose one of {', '.join(measures)}")
    for other, names in OWN_FLAGS.items():
        if other != subject:
            FLAGS.refuse(names, f"on `benchmark {subject}`, only on `benchmark {other}`")
    # The benchmark of the step measures the compile time, which a cached program would hide.
    uncached = jax_config(jax_enable_compilation_cache=False)
    with apart(_JSON.value), phase(f"benchmark of the {subject}"), uncached:
        results, rows = measures[subject]()
    if _JSON.value:
        arguments = shlex.join(["python", "-m", "can_jax.benchmark", *sys.argv[1:]])
        print(json.dumps({"command": arguments} | results, indent=2))
    else:
        plain_console(width=100, highlight=False).print(fact_table(subject.capitalize(), rows))
