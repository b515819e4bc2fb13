import jax.numpy as jnp
import pytest
from etils import epath

from can_jax.monitoring.profile import TRACED_STEPS, WARM_STEPS, TraceWindow
from tests.helpers.runs import command, main_in_process


@pytest.mark.slow
def test_run_leaves_a_trace_for_tensorboard_and_its_program(recipe, tmp_path):
    options = command(recipe, tmp_path, "probe.every_steps=0", "figures.every_steps=0")
    done = main_in_process(*options[2:], "--profile", "--dump_hlo")
    assert done.returncode == 0, done.stderr
    assert "the profiler traced steps 1 to 5; to view: tensorboard --logdir=" in done.stdout
    assert list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))
    assert "ENTRY" in (tmp_path / "hlo.txt").read_text()


def test_window_lies_after_the_first_steps(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    window = TraceWindow(epath.Path(tmp_path), 100, 1000)
    for number in range(101, 1000):
        window.before(number)
        calls.append(number)
        window.after(number, jnp.zeros(()))
    start, stop = calls.index("start"), calls.index("stop")
    assert calls[start + 1 : stop] == list(range(101 + WARM_STEPS, 101 + WARM_STEPS + TRACED_STEPS))
    assert calls.count("start") == calls.count("stop") == 1
