import json
import threading
import time
from datetime import datetime

import numpy as np
import pytest
from etils import epath

from can_jax.monitoring import metrics
from can_jax.monitoring.jsonl import read_metrics
from can_jax.monitoring.metrics import MetricWriter
from can_jax.monitoring.scalars import effective_rank, to_scalars
from can_jax.monitoring.trackers import TRACKERS, Tracker


def test_effective_rank_counts_directions():
    for rank in (1, 3, 8):
        basis = np.zeros((48, 8))
        basis[np.arange(48), np.arange(48) % rank] = 1
        assert effective_rank(basis.T @ basis) == pytest.approx(rank, rel=1e-6)
    assert np.isnan(effective_rank(np.full((2, 2), np.nan)))


def test_scalars_hold_the_rank_and_not_the_matrix():
    scalars = to_scalars(
        {"loss/total": np.float32(2), "embedding/gram": np.eye(4, dtype=np.float32)}
    )
    assert scalars == pytest.approx({"loss/total": 2.0, "embedding/effective_rank": 4.0})


def writer_after(folder, step):
    writer = MetricWriter(epath.Path(folder))
    writer.truncate_after(step)
    return writer


def test_a_writer_that_never_began_writes_nothing(tmp_path):
    MetricWriter(epath.Path(tmp_path)).close()
    assert not list(tmp_path.iterdir())


def test_lines_and_events(tmp_path):
    writer = writer_after(tmp_path, 0)
    writer.scalars(1, {"loss/total": 0.5, "grad_norm": float("nan")})
    writer.image(1, "panel", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert time.time() - datetime.fromisoformat(line.pop("time")).timestamp() < 60
    assert 0 <= line.pop("elapsed_seconds") < 60
    assert line == {"step": 1, "loss/total": 0.5, "grad_norm": None}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "loss/total" in events.Tags()["tensors"] and "panel" in events.Tags()["tensors"]


def test_going_on_drops_what_comes_again(tmp_path):
    lines = ['{"step": 1}', '{"step": 2, "elapsed_seconds": 100.0}', '{"step": 3}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    writer = writer_after(tmp_path, 2)
    writer.scalars(3, {"again": 1.0})
    writer.close()
    *kept, last = read_metrics(epath.Path(tmp_path))
    assert kept == [{"step": 1}, {"step": 2, "elapsed_seconds": 100.0}]
    assert last["step"] == 3 and last["again"] == 1.0 and 100 <= last["elapsed_seconds"] < 160
    dropped = (tmp_path / "metrics_dropped.jsonl").read_text().splitlines()
    assert dropped == ['{"step": 3}', '{"step": 4, "lo']


def test_run_that_begins_once_more_has_one_line_of_its_start(tmp_path):
    """A kill before the first checkpoint came after the evaluation of step 0."""
    for value in (1.0, 2.0):
        writer = writer_after(tmp_path, 0)
        writer.scalars(0, {"probe/knn": value})
        writer.close()
    (line,) = read_metrics(epath.Path(tmp_path))
    assert (line["step"], line["probe/knn"]) == (0, 2.0)
    resumed = writer_after(tmp_path, 3)  # which keeps the line
    resumed.close()
    assert len(read_metrics(epath.Path(tmp_path))) == 1


def test_damaged_lines_are_moved_and_end_nothing(tmp_path):
    lines = [b'{"step": 1}', b"\xff\xfe{", b"5", b"[]", b'{"step": "2"}', b"\0\0\0", b'{"step": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_metrics(epath.Path(tmp_path)) == [{"step": 1}, {"step": 2}]
    writer_after(tmp_path, 5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert (tmp_path / "metrics_dropped.jsonl").read_bytes().splitlines() == lines[1:-1]


def test_tensorboard_shows_each_step_once_after_going_back(tmp_path):
    for after, last in ((0, 10), (4, 7)):
        writer = writer_after(tmp_path, after)
        for step in range(after + 1, last + 1):
            writer.scalars(step, {"x": float(step)})
        if after:
            writer.truncate_after(5)
            writer.scalars(6, {"x": -6.0})
        writer.close()
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Tensors("x")] == [1, 2, 3, 4, 5, 6]


def test_tracker_that_fails_is_logged_once_and_stops_no_other(tmp_path, monkeypatch, caplog):
    class Broken(Tracker):
        """Fails whenever it is called."""

        def __init__(self, workdir):
            self.calls = calls

        def start(self, step):
            calls.append(("start", step))

        def hyperparameters(self, config):
            calls.append(config)

        def metrics(self, step, values):
            calls.append((step, values))
            raise ConnectionError("the server is gone")

        def finish(self):
            calls.append("finish")

    calls = []
    monkeypatch.setattr(TRACKERS, "_values", {"broken": Broken} | TRACKERS._values)
    with caplog.at_level("WARNING"):
        writer = writer_after(tmp_path, 0)
        writer.hyperparameters({"seed": 1})
        writer.scalars(1, {"x": 1.0})
        writer.scalars(2, {"x": 2.0})
        writer.close()
    assert calls == [("start", 0), {"seed": 1}, (1, {"x": 1.0}), (2, {"x": 2.0}), "finish"]
    assert [line["x"] for line in read_metrics(epath.Path(tmp_path))] == [1.0, 2.0]
    assert caplog.text.count("by the tracker broken: ConnectionError: the server is gone") == 1


def test_tracker_that_cannot_be_created_is_logged_and_stops_no_other(tmp_path, monkeypatch, caplog):
    def unreachable(workdir):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(TRACKERS, "_values", {"broken": unreachable} | TRACKERS._values)
    with caplog.at_level("WARNING"):
        writer = writer_after(tmp_path, 0)
        writer.scalars(1, {"x": 1.0})
        writer.close()
    assert [line["x"] for line in read_metrics(epath.Path(tmp_path))] == [1.0]
    assert caplog.text.count("by the tracker broken: ConnectionError: the server is gone") == 1


def test_trackers_that_hang_do_not_fail_a_finished_run(tmp_path, monkeypatch, caplog):
    class Hanging(Tracker):
        """Waits for a server that does not answer."""

        in_background = True

        def __init__(self, workdir):
            pass

        def finish(self):
            answer.wait(60)

    answer = threading.Event()
    hanging = {"first": Hanging, "second": Hanging}
    monkeypatch.setattr(TRACKERS, "_values", hanging | TRACKERS._values)
    monkeypatch.setattr(metrics, "FINISH_SECONDS", 0.1)
    with caplog.at_level("WARNING"):
        writer_after(tmp_path, 0).close()
    answer.set()
    for name in hanging:
        assert f"the tracker {name} did not finish within 0 s" in caplog.text
