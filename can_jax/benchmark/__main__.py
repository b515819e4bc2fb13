"""`python -m can_jax.benchmark input --path=DIR [--json]`

`input` measures how many images a second the host can prepare: decoding alone, cropping alone, all
of it, and all of it up to the device; beside the two-view pipeline that PyTorch users write with
Pillow, with as many processes as we have threads. The stages take turns, several times.
"""

import json

from absl import flags

from can_jax import command
from can_jax.benchmark.input import measure_input
from can_jax.config import default_config, resolve
from can_jax.errors import UserError
from can_jax.observe.console import fact_table

SOURCES = ("folder", "tfrecord", "webdataset", "tfds")  # of encoded images

_PATH = flags.DEFINE_string("path", None, "As data.path in a recipe.")
_SOURCE = flags.DEFINE_enum("source", "folder", SOURCES, "As data.source in a recipe.")
_NAME = flags.DEFINE_string("name", None, "As data.name in a recipe.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels along a side.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images of a batch.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", None, "Of each pipeline; by default one a core.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each stage has its turn.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3.0, "How long a turn lasts.", lower_bound=0.1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(subject: str) -> None:
    """Measure and print."""
    if subject != "input":
        raise UserError(f"what is {subject!r}? there is a benchmark of: input")
    config = default_config()
    config.data.update(
        source=_SOURCE.value, path=_PATH.value, name=_NAME.value, threads=_THREADS.value
    )
    with config.ignore_type():
        config.data.image_size = _IMAGE_SIZE.value
    config.batch_size, config.total_steps = _BATCH_SIZE.value, 1
    found = measure_input(resolve(config), _ROUNDS.value, _SECONDS.value)
    if _JSON.value:
        print(json.dumps(found))
        return
    from rich.console import Console

    rows = {}
    for stage in ("decode_only", "crops", "host_pipeline", "to_device", "pil_two_view"):
        rate = found[stage]
        rows[stage] = (
            f"{rate:7.0f} images/s   {rate / found['threads']:6.0f} a core   "
            f"{rate / found['pil_two_view']:5.2f} x Pillow"
        )
    rows["host_pipeline / decode_only"] = f"{found['host_pipeline'] / found['decode_only']:.2f}"
    Console(width=100, highlight=False).print(fact_table("Input", rows))


if __name__ == "__main__":
    command.run(main, __doc__, ("SUBJECT",))
