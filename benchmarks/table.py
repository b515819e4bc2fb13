"""Write the table of step benchmarks from `benchmarks/results/step` to `docs/speed.md`.

python -m can_jax.benchmark step … --json > benchmarks/results/step/NAME.json    # adds a row
python benchmarks/table.py    # replaces the table between the marks in the page
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


def row(results: dict) -> str:
    """Return the line of the table for the results of one run of the benchmark."""
    device = results["environment"]["devices"][0].rsplit(" ", 1)[0]
    name = results["environment"]["processor"] if device == "cpu" else device
    cells = (
        results["model"],
        results["dtype"],
        str(results["batch_size"]),
        f"{results['images_per_second']:.2f}",
        f"{results['mfu_of_measured_peak']:.0%}",
        f"{results['peak_memory_bytes'] / 1e9:.1f}",
        f"{results['peer_images_per_second']:.2f} ({results['peer']})"
        if "ratio" in results
        else "",
        f"{results['ratio']:.2f}" if "ratio" in results else "",
        name,
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the table, with its rows in the order of the file names."""
    rows = [row(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    return "\n".join([HEAD, "|---|---|--:|--:|--:|--:|--:|--:|---|", *rows]) + "\n"


def main() -> None:
    """Replace the table in the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END, 1)
    PAGE.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
