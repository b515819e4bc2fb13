"""The run's numbers, as lines of JSON and as TensorBoard events. Nothing else writes metrics."""

import json
import math
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from can_jax.tf import tensorflow


def effective_rank(gram: Float[np.ndarray, "width width"]) -> float:
    """How many directions a batch of embeddings fills: the exponential of the entropy of its
    singular values (Roy and Vetterli, 2007; RankMe, arXiv 2210.02885).

    Args:
        gram: ``E.T @ E`` of the embeddings ``E``, up to a factor; its eigenvalues are the squared
            singular values.
    """
    if not np.isfinite(gram).all():
        return math.nan
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram.astype(np.float64)), 0.0, None))
    shares = values / max(values.sum(), 1e-30)
    return float(np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-30)))))


def to_scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """A step's metrics on the host, the Gram matrix as its effective rank."""
    host = dict(jax.device_get(metrics))
    if "embedding/gram" in host:
        host["embedding/effective_rank"] = effective_rank(host.pop("embedding/gram"))
    return {name: float(value) for name, value in host.items()}


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard's events; only process 0 writes.

    Args:
        workdir: the run directory.
        after: the step from which the run goes on. What an interrupted run wrote beyond it is
            dropped, since those steps come again.
    """

    def __init__(self, workdir: epath.Path, after: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        tensorflow()  # clu's writer imports it too; ours keeps it off the GPUs
        from clu.metric_writers import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        self._drop_lines(after)
        self._lines = self._path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of JSON with the step and all values; NaN and infinity become null."""
        if not self._active:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(json.dumps({"step": step} | finite) + "\n")
        self._lines.flush()
        self._events.write_scalars(step, values)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """A picture, for TensorBoard."""
        if self._active:
            self._events.write_images(step, {name: image[None]})
            self._events.flush()

    def close(self) -> None:
        """Write out what is left."""
        if self._active:
            self._lines.close()
            self._events.flush()
            self._events.close()

    def _drop_lines(self, after: int) -> None:
        """Keep the whole lines up to a step; replaces the file in one move."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while writing it
            if record["step"] <= after:
                kept.append(line + "\n")
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self._path)
