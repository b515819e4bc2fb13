"""A trace of a few steps for TensorBoard's profiler."""

import jax
from etils import epath

WARM_STEPS = 10  # before the trace, so that caches and the input pipeline are filled
TRACED_STEPS = 5


class TraceWindow:
    """A profiler trace of at most `TRACED_STEPS` steps, after `WARM_STEPS` steps without a trace.

    Args:
        workdir: The run directory. The trace is stored in its folder ``tensorboard``.
        first: The step from which the run starts or resumes.
        total: The last step of the run. If fewer than `WARM_STEPS` + `TRACED_STEPS` steps remain,
            the trace begins without warm-up steps.
    """

    def __init__(self, workdir: epath.Path, first: int, total: int):
        warm = WARM_STEPS if total - first >= WARM_STEPS + TRACED_STEPS else 0
        self._folder = workdir / "tensorboard"
        self._begin = first + warm
        self._end = min(self._begin + TRACED_STEPS, total)
        self._tracing = False

    def before(self, step: int) -> None:
        """Start the trace if ``step``, which is about to be dispatched, is the first traced
        step."""
        if step == self._begin + 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, done: jax.Array) -> str | None:
        """Stop the trace if ``step`` is the last traced step. Blocks first until this step has
        finished.

        Args:
            step: The step that was dispatched.
            done: An output of the step; the trace ends once this output is computed.

        Returns:
            A message if the trace was written, otherwise None.
        """
        if not self._tracing or step < self._end:
            return None
        jax.block_until_ready(done)
        jax.profiler.stop_trace()
        self._tracing = False
        steps = f"steps {self._begin + 1} to {self._end}"
        return f"the profiler traced {steps}; to view: tensorboard --logdir={self._folder}"
