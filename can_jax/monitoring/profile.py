"""A trace of a few steps, for TensorBoard's profiler."""

import jax
from etils import epath

WARM_STEPS = 10  # before the trace, so that caches are filled and the input runs ahead
TRACED_STEPS = 5


class TraceWindow:
    """Traces `TRACED_STEPS` steps of a run, after its first `WARM_STEPS`.

    Args:
        workdir: the run directory; the trace lies with its TensorBoard events.
        first: the step from which the run goes on.
        total: its last; a short run is traced from its first step.
    """

    def __init__(self, workdir: epath.Path, first: int, total: int):
        warm = WARM_STEPS if total - first >= WARM_STEPS + TRACED_STEPS else 0
        self._folder = workdir / "tensorboard"
        self._begin = first + warm
        self._end = min(self._begin + TRACED_STEPS, total)
        self._tracing = False

    def before(self, number: int) -> None:
        """A step is about to be started."""
        if number == self._begin + 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, number: int, done: jax.Array) -> str | None:
        """A step was started; ``done`` is ready when it has ended. The line to print, if any."""
        if not self._tracing or number < self._end:
            return None
        jax.block_until_ready(done)
        jax.profiler.stop_trace()
        self._tracing = False
        return f"steps {self._begin + 1} to {self._end} traced: tensorboard --logdir={self._folder}"
