"""The table of step benchmarks in `docs/speed.md`, from the files in `benchmarks/results/step`.

python benchmarks/table.py            # writes it between the marks of the page
python -m can_jax.benchmark step … --json > benchmarks/results/step/NAME.json    # adds a row
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "step"
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- benchmarks/table.py -->\n", "<!-- end -->"
HEAD = (
    "| model | type | batch | images/s | MFU of the measured product | memory, GB "
    "| PyTorch's images/s | ratio | device |"
)


def row(found: dict) -> str:
    """A line of the table for what one run of the benchmark found."""
    device = found["environment"]["devices"][0].rsplit(" ", 1)[0]
    name = found["environment"]["processor"] if device == "cpu" else device
    cells = (
        found["model"],
        found["dtype"],
        str(found["batch_size"]),
        f"{found['images_per_second']:.2f}",
        f"{found['mfu_of_measured_peak']:.0%}",
        f"{found['peak_memory_bytes'] / 1e9:.1f}",
        f"{found['peer_images_per_second']:.2f} ({found['peer']})" if "ratio" in found else "",
        f"{found['ratio']:.2f}" if "ratio" in found else "",
        name,
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """All rows, by file name."""
    rows = [row(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([HEAD, "|---|---|--:|--:|--:|--:|--:|--:|---|", *rows]) + "\n"


def main() -> None:
    """Put the table into the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END, 1)
    PAGE.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
