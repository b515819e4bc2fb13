import json
import os
import signal
import subprocess

import pytest

from can_jax.study.reference_ranges import METRICS, compared, outside, ranges_of
from can_jax.utils.errors import UserError
from tests.helpers.runs import ROOT, command, main_in_process, metrics


def run_of(offset):
    return [{"step": s, "loss/contrastive": 5 - s / 10 + offset} for s in (0, 10, 20)]


def test_bands_hold_their_runs_and_not_one_that_fails():
    bands = ranges_of([run_of(0.0), run_of(0.2), run_of(0.1)])
    assert bands["loss/contrastive"]["10"] == (3.5831, 4.6169)
    assert outside(bands, run_of(0.1)) == [] and compared(bands, run_of(0.1)) == 3
    (line, *rest) = outside(bands, run_of(1.0))
    assert len(rest) == 2
    assert line == "loss/contrastive at step 0 is 6, outside the range [4.481, 5.718]"
    assert compared(bands, [{"step": 7, "loss/contrastive": 99.0}]) == 0
    (line,) = outside(bands, [{"step": 10, "loss/contrastive": None}])
    assert line == "loss/contrastive at step 10 is not finite, outside the range [3.583, 4.617]"
    with pytest.raises(UserError, match="loss/contrastive at step 10 is not finite in run 2 of 2"):
        ranges_of([run_of(0.0), [{"step": 10, "loss/contrastive": None}]])


def test_command(tmp_path):
    def healthy(*arguments):
        return main_in_process("can_jax.study.healthy", tmp_path / "b.json", *arguments)

    for name, offset in (("a", 0.0), ("b", 0.2), ("c", 3.0)):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(line) + "\n" for line in run_of(offset))
        (tmp_path / name / "metrics.jsonl").write_text(lines)
        (tmp_path / name / "environment.json").write_text('{"commit": "abc"}')
    assert "there is no such file" in healthy(f"--run={tmp_path / 'a'}").stderr
    both = f"--run={tmp_path / 'a'},{tmp_path / 'b'}"
    (tmp_path / "a" / "environment.json").rename(tmp_path / "stored.json")
    missing = healthy(both, "--write")
    assert missing.returncode == 1 and "a/environment.json cannot be read: " in missing.stderr
    (tmp_path / "stored.json").rename(tmp_path / "a" / "environment.json")
    made = healthy(both, "--write")
    assert made.returncode == 0, made.stderr
    assert healthy(f"--run={tmp_path / 'a'}").returncode == 0
    wrong = healthy(f"--run={tmp_path / 'c'}", "--json")
    assert (
        wrong.returncode == 1 and "some metrics are outside their reference ranges" in wrong.stderr
    )
    assert len(json.loads(wrong.stdout)[str(tmp_path / "c")]["outside"]) == 3


def test_shipped_bands_are_of_all_metrics_of_can():
    losses = {f"loss/{name}" for name in ("contrastive", "reconstruction", "denoising")}
    expected = losses | {name for name in METRICS if not name.startswith("loss/")}
    shipped = sorted((ROOT / "configs" / "healthy").glob("*.json"))
    assert shipped
    for path in shipped:
        content = json.loads(path.read_text())
        assert content["runs"] >= 2 and content["commit"]
        assert set(content["bands"]) == expected
        assert (ROOT / "configs" / f"{path.stem}.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options", "values"),
    [
        ("quickstart", [], 11),  # five measures at two steps, and kNN before the first
    ],
)  # fmt: skip
def test_short_run_of_a_recipe_stays_within_its_bands(recipe, options, values, tmp_path):
    """The shipped recipe, stopped after a hundred of its steps, for which optimising pays."""
    process = subprocess.Popen(
        command(ROOT / "configs" / f"{recipe}.py", tmp_path, *options), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "XLA_FLAGS": ""},
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 100/"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, process.stderr.read()
    bands = json.loads((ROOT / "configs" / "healthy" / f"{recipe}.json").read_text())["bands"]
    run = metrics(tmp_path)
    assert outside(bands, run) == []
    assert compared(bands, run) >= values
    halved = [line | {"loss/contrastive": run[-1]["loss/contrastive"] / 2} for line in run]
    assert outside(bands, halved)
