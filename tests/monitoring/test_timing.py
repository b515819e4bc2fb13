import time

import jax.numpy as jnp

from can_jax.monitoring import timing
from can_jax.monitoring.timing import InputWatch, Startup, StepClock


def test_window_leaves_out_pauses_and_knows_the_wait():
    clock = StepClock()
    for _ in range(4):
        with clock.waiting_for_data():
            time.sleep(0.02)
        clock.stepped(jnp.zeros(()))
    with clock.paused():
        time.sleep(1.5)
    window = clock.window()
    assert window.steps == 4
    assert 0.08 <= window.seconds < 1.5
    assert window.step_seconds == window.seconds / 4
    assert 0.08 <= window.data_wait * window.seconds <= window.seconds
    assert clock.window().steps == 0


def test_input_that_holds_up_the_devices_is_said_once():
    watch = InputWatch()
    assert watch(0.9, 100.0) is None  # the pipeline fills
    assert watch(0.05, 100.0) is None
    line = watch(0.25, 300.0)
    assert "25% of the time" in line and "gets 300 images/s and could process about 400" in line
    assert watch(0.5, 100.0) is None


def test_only_the_first_run_of_a_command_begins_with_the_process(monkeypatch):
    monkeypatch.setattr(timing, "process_age", lambda: 3600.0)
    assert time.perf_counter() - Startup().began < 60  # as in a notebook that is open for an hour
    timing.count_from_process_start()
    assert time.perf_counter() - Startup().began >= 3600
    assert time.perf_counter() - Startup().began < 60
