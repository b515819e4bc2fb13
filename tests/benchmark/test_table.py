import json
import runpy
from types import SimpleNamespace

from tests.helpers.runs import ROOT

TABLE = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "table.py")))


def test_page_shows_the_results_that_are_there():
    assert TABLE.table() in (ROOT / "docs/speed.md").read_text()


def test_every_result_says_what_was_run_where():
    files = sorted(TABLE.RESULTS.glob("*.json"))
    assert files
    for path in files:
        found = json.loads(path.read_text())
        assert found["command"].startswith("python -m can_jax.benchmark step ")
        assert found["environment"]["commit"] and found["environment"]["processor"]
        share = found["images_per_second"] * found["analytic_flops_per_image"]
        assert abs(share / found["measured_peak_flops"] - found["mfu_of_measured_peak"]) < 1e-6
