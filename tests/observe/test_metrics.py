import json

import numpy as np
import pytest
from etils import epath

from can_jax.observe.metrics import MetricWriter, effective_rank, to_scalars


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


def test_lines_and_events(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), after=0)
    writer.scalars(1, {"loss/total": 0.5, "grad_norm": float("nan")})
    writer.image(1, "panel", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1, "loss/total": 0.5, "grad_norm": None,
    }  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "loss/total" in events.Tags()["tensors"] and "panel" in events.Tags()["tensors"]


def test_going_on_drops_what_comes_again(tmp_path):
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    writer = MetricWriter(epath.Path(tmp_path), after=2)
    writer.scalars(3, {"again": 1.0})
    writer.close()
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1.0}]
