"""The page of a run: what it shows of a run directory, of several, and of damaged ones."""

import json
import re

from etils import epath

from can_jax.cli.commands.report import main
from can_jax.config import default_config
from can_jax.config.resolve import to_json
from can_jax.evaluate.reports import charts
from can_jax.evaluate.reports.run_record import read_record
from can_jax.evaluate.reports.run_report import charts_of
from can_jax.monitoring.glossary import METRICS
from tests.evaluate.test_pages import EVIL, found_in

PNG = bytes.fromhex("89504e470d0a1a0a")  # pages inline figures, and do not decode them


def run_directory(path, batch=256, text="plain", steps=6, changed=0.05):
    """A run of two starts, the second with another weight decay, written as a run writes it."""
    (path / "figures").mkdir(parents=True)
    config = default_config()
    config.batch_size = batch
    first = json.loads(to_json(config))
    config.optimizer.weight_decay = changed
    (path / "config.json").write_text(to_json(config))
    facts = {"versions": {"jax": text}, "devices": [text], "commit": text, "run": {"steps": 9}}
    (path / "environment.json").write_text(json.dumps(facts))
    starts = [
        {"time": text, "host": text, "step": 0, "command": [text], "config": first},
        {"time": text, "host": text, "step": 3, "command": [text], "environment": facts,
         "config": json.loads(to_json(config))},
    ]  # fmt: skip
    (path / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in starts))
    lines = [{"step": 0, "probe/knn": 12.0, "probe/knn_pixels": 10.0}]
    lines += [
        {"step": step, "loss/total": 1 / step, "images_per_second": 100.0 * step, "mfu": 0.25,
         "data_wait": 0.3, "skipped_steps": 2.0, "embedding/std": 0.01, "epoch": step / 4,
         "examples": step, "denoising/explained": -3.0, "loss/reconstruction": None, text: 1.0}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    lines.append({"step": steps, "probe/knn": 11.0})
    text_of = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text_of + '{"step": 7, "loss')  # cut off by a kill
    (path / "log.txt").write_text(f"now a line\nnow WARNING: {text} is late\n")
    for step in range(0, 20 * steps, steps):
        (path / f"figures/step_{step:08d}.png").write_bytes(PNG)
    return path


def page_of(tmp_path, *runs, code=0):
    assert main([*map(str, runs), f"--output={tmp_path / 'page.html'}"]) == code
    return (tmp_path / "page.html").read_text()


def test_page_shows_curves_settings_changes_starts_and_notices(tmp_path):
    text = page_of(tmp_path, run_directory(tmp_path / "mine", changed=0.1))
    charts = re.findall(r'aria-label="([^"]*) against step"', text)
    assert {"loss/total", "probe/knn", "data_wait", "embedding/std"} <= set(charts)
    assert charts.index("loss/total") < charts.index("probe/knn") < charts.index("data_wait")
    assert "epoch" not in charts and "probe/knn_pixels" not in charts
    for part in (
        "6 of 9", "<td>optimizer.weight_decay</td>", "waited for images for 30%",
        "2 updates were skipped", "has collapsed: embedding/std is 0.01.",
        "worse than a prediction of zero", "11.0 %, does not exceed",
        "plain is late", "prefers-color-scheme: dark", 'name="viewport"',
    ):  # fmt: skip
        assert part in text, part
    row = r"<td>optimizer.weight_decay</td>\s*<td>0.05</td>\s*<td>0.1</td>"
    assert re.search(row, text)
    assert text.count("data:image/png") == 6  # of 20 figures, the first and the last included
    assert "step 0</figcaption>" in text and "step 114</figcaption>" in text


def test_reference_of_zero_is_drawn(tmp_path, monkeypatch):
    run = run_directory(tmp_path / "run", steps=1)
    text = (run / "metrics.jsonl").read_text().replace('knn_pixels": 10.0', 'knn_pixels": 0.0')
    (run / "metrics.jsonl").write_text(text)
    drawn = {}
    monkeypatch.setattr(
        charts, "metric_chart", lambda _, lines, *, title, **others: drawn.update({title: lines})
    )
    charts_of([read_record(epath.Path(run), "run")])
    assert drawn["probe/knn"] == {"run": 0.0} and drawn["loss/total"] == {}


def test_runs_are_compared_by_images_where_batches_differ(tmp_path):
    one, other = run_directory(tmp_path / "one"), run_directory(tmp_path / "other", batch=512)
    text = page_of(tmp_path, one, other)
    assert "loss/total against images" in text
    assert re.search(r"<td>batch_size</td>\s*<td>256</td>\s*<td>512</td>", text)
    assert text.count("<td>batch_size</td>") >= 2 and "<i style=" in text
    same = page_of(tmp_path, one, run_directory(tmp_path / "third"))
    assert "loss/total against step" in same and "None." in same


def test_no_value_of_a_run_becomes_part_of_the_page(tmp_path):
    pages = [
        page_of(tmp_path, run_directory(tmp_path / name, text=text))
        for name, text in (("evil", EVIL), ("tame", "plain"))
    ]
    assert found_in(pages[0]) == found_in(pages[1])
    assert "script" not in found_in(pages[0])[0] and "default-src 'none'" in pages[0]


def test_long_run_is_drawn_as_mean_and_range(tmp_path):
    size = len(page_of(tmp_path, run_directory(tmp_path / "long", steps=3000)))
    assert size < 600_000


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    def refused(*arguments):
        assert main(list(map(str, arguments))) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    run = run_directory(tmp_path / "run")
    assert "RUN... is missing" in refused()
    assert "config.json is missing" in refused(tmp_path)
    assert "given twice" in refused(run, f"{run}/")
    assert "cannot be written" in refused(run, f"--output={tmp_path}/no/page.html")
    (run / "metrics.jsonl").write_text("")
    assert "has no metrics yet" in refused(run)
    (run / "config.json").write_text("[]")
    (run / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n')
    assert "holds a list" in refused(run)
    (run / "config.json").write_text("{}")
    (run / "environment.json").write_text('{"run": [], "versions": 3}')
    (run / "starts.jsonl").write_text('{"step": "x", "environment": 1, "config": 2}\n')
    page_of(tmp_path, run)  # What is of another form is left out.


def test_meanings_are_sentences():
    for name, metric in METRICS.items():
        assert metric.meaning.endswith("."), name
        assert not metric.reading or metric.reading.endswith("."), name
