import time

import jax.numpy as jnp

from can_jax.observe.clock import FiniteWatch, InputWatch, StepClock


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
    assert 0 < window.data_wait <= 1
    assert clock.window().steps == 0


def test_input_that_holds_up_the_devices_is_said_once():
    watch = InputWatch()
    assert watch(0.9, 100.0) is None  # the pipeline fills
    assert watch(0.05, 100.0) is None
    line = watch(0.25, 300.0)
    assert "25% of the time" in line and "get 300 images/s and could take about 400" in line
    assert watch(0.5, 100.0) is None


def test_updates_that_are_skipped_in_a_row_reach_the_limit_a_few_steps_late():
    watch = FiniteWatch(3)
    skipped = [0, 1, 2, 2, 3, 4, 5, 5, 5, 5]  # two in a row, one that was good, three in a row
    told = [watch(jnp.int32(count)) for count in skipped]
    assert told == [False] * 8 + [True, False]
    never = FiniteWatch(0)
    assert not any(never(jnp.int32(count)) for count in range(20))
