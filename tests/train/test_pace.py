"""Runs whose length is a time: they end on time, with the learning rate at its end."""

import json

import numpy as np
import pytest
from etils import epath

from can_jax.config.durations import MOST_STEPS, TIMED_STEPS
from can_jax.train import pace as pacing
from can_jax.train.pace import Pace, known_last_step, time_used
from can_jax.utils.errors import UserError
from tests.helpers.configs import small_config
from tests.helpers.runs import ROOT, metrics, run_in_process
from tests.train.test_pretrain import LIGHT


class Clock:
    """A clock that only the test advances."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(pacing.time, "perf_counter", lambda: self.now)


def train(clock, pace, step, seconds_of, kill_at=None):
    """Train with steps of given durations; return the last step, and the position at each."""
    positions = {}
    while step < pace.total:
        step += 1
        positions[step] = float(pace.position(step - 1))
        clock.now += seconds_of(clock.now)
        pace.update(step, 0.0, 1.0)
        if kill_at and clock.now > kill_at:
            return step, positions
    pace.finish(step)
    return step, positions


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize("slower", [1.0, 2.0, 0.3])
def test_run_ends_on_time_though_the_machine_changes_its_speed(clock, tmp_path, slower):
    pace = Pace(epath.Path(tmp_path), 600.0, clock.now, 0)
    step, positions = train(clock, pace, 0, lambda now: 0.25 * (slower if now > 1300 else 1.0))
    assert 585 < clock.now - 1000.0 < 600
    values = list(positions.values())
    assert values[0] == 0 and np.all(np.diff(values) >= 0)
    assert TIMED_STEPS * 0.98 < values[-1] < TIMED_STEPS
    assert float(pace.position(step)) == TIMED_STEPS
    assert known_last_step(epath.Path(tmp_path), 600.0) == step


@pytest.mark.parametrize("limit", [60.0, 1200.0])
def test_compilation_and_first_probe_do_not_advance_the_schedule(clock, tmp_path, limit):
    pace = Pace(epath.Path(tmp_path), limit, clock.now, 0)
    clock.now += 25.0
    started = clock.now

    def seconds_of(now):
        return 2.0 if now == started else 0.3

    _, positions = train(clock, pace, 0, seconds_of)
    assert limit - 10 < clock.now - 1000.0 < limit
    growth = np.diff(list(positions.values()))
    assert growth.max() < 1.5 * TIMED_STEPS / len(positions)
    assert positions[10] < 12 * TIMED_STEPS / len(positions)


def test_early_pause_is_not_expected_again_and_again(clock, tmp_path):
    """The first checkpoint is written at step 4, in the first window, and takes 3 s."""
    pace, step = Pace(epath.Path(tmp_path), 600.0, clock.now, 0), 0
    while step < 100:
        step += 1
        clock.now += 0.25 + (3.0 if step == 4 else 0.0)
        pace.update(step, 3.0 if step >= 4 else 0.0, 0.0)
    assert pace.position(step) < 3 * TIMED_STEPS * step * 0.25 / 600


def test_first_steps_after_a_rollback_are_not_a_measurement(clock, tmp_path):
    pace = Pace(epath.Path(tmp_path), 600.0, clock.now, 0)
    step, _ = train(clock, pace, 0, lambda now: 0.25, kill_at=1300.0)
    total = pace.total
    pace.rolled_back(step, step - 100)
    clock.now += 20.0  # The checkpoint is restored, and the data is read again.
    for later in range(step - 99, step):
        clock.now += 0.25
        pace.update(later, 0.0, 1.0)
    assert abs(pace.total - (total - 100 - 80)) < 20


def test_time_of_a_killed_start_counts_and_the_schedule_goes_on(clock, tmp_path):
    folder = epath.Path(tmp_path)
    step, positions = train(
        clock, Pace(folder, 600.0, clock.now, 0), 0, lambda now: 0.25, kill_at=1300.0
    )
    checkpoint = step - 100
    stored = {"position": positions[checkpoint + 1], "allowed": 600.0}
    assert 295 < time_used(folder).seconds < 301 and known_last_step(folder, 600.0) is None
    clock.now = 5000.0  # Some time passes, which does not count.
    pace = Pace(folder, 600.0, clock.now, checkpoint, stored)
    assert float(pace.position(checkpoint)) == positions[checkpoint + 1]
    last, _ = train(clock, pace, checkpoint, lambda now: 0.25)
    assert 285 < clock.now - 5000.0 < 300 and float(pace.position(last)) == TIMED_STEPS


def test_run_that_gets_a_time_limit_has_used_its_training_time(clock, tmp_path):
    pace = Pace(epath.Path(tmp_path), 600.0, clock.now, 900, trained=450.0)
    assert float(pace.position(900)) == 0.75 * TIMED_STEPS and pace.used() == 450
    last, _ = train(clock, pace, 900, lambda now: 0.25)
    assert 135 < clock.now - 1000.0 < 150 and float(pace.position(last)) == TIMED_STEPS


def test_evaluations_at_the_end_have_time_after_a_kill_and_on_a_slower_machine(clock, tmp_path):
    """Evaluations take 30 s, and four times as long once the machine is four times as slow."""
    folder = epath.Path(tmp_path)

    def seconds_of(now):
        return 1.0 if now > 1200.0 else 0.25

    pace, step = Pace(folder, 600.0, clock.now, 0), 0
    while clock.now < 1150.0:
        step += 1
        clock.now += seconds_of(clock.now)
        pace.update(step, 0.0, 30.0)
    pace = Pace(folder, 600.0, clock.now, step, pace.state(step))  # which evaluated nothing yet
    train(clock, pace, step, seconds_of)
    lost = 3  # seconds between the last record of the time and the kill
    assert 600 - 120 - 20 < clock.now - 1000.0 < 600 - 120 + lost


def test_run_whose_time_is_over_ends_its_schedule_in_a_few_steps(clock, tmp_path):
    folder = epath.Path(tmp_path)
    pace = Pace(folder, 600.0, clock.now, 0)
    step, _ = train(clock, pace, 0, lambda now: 0.25, kill_at=1300.0)
    clock.now += 10_000.0  # The machine was suspended.
    last, positions = train(clock, pace, step, lambda now: 0.25)
    assert step < last <= step + 40 and max(np.diff(list(positions.values()))) > 1000
    assert float(pace.position(last)) == TIMED_STEPS


def test_finished_run_continues_only_with_more_time(clock, tmp_path):
    folder = epath.Path(tmp_path)
    pace = Pace(folder, 60.0, clock.now, 0)
    last, _ = train(clock, pace, 0, lambda now: 0.5)
    assert known_last_step(folder, 60.0) == last and known_last_step(folder, 120.0) is None
    again = Pace(folder, 120.0, clock.now, last, pace.state(last))
    assert again.total == MOST_STEPS and float(again.position(last)) == TIMED_STEPS / 2


def test_damaged_file_of_the_time_is_one_line(tmp_path):
    (tmp_path / pacing.FILE).write_text("{")
    with pytest.raises(UserError, match="time_used.json cannot be read"):
        time_used(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__warmup_steps": 3}, "optimizer.warmup_steps=3: the number of steps of a run"),
        ({"total_minutes": -1.0}, "total_minutes"),
    ],
)
def test_warmup_of_a_timed_run_is_a_share(changes, message):
    settings = {"total_steps": None, "total_minutes": 1.0, "optimizer__warmup_steps": None}
    with pytest.raises(UserError, match=message):
        small_config(**(settings | changes))
    assert small_config(**settings).total_minutes == 1.0


@pytest.mark.slow
def test_timed_run_ends_with_its_schedule_and_is_finished(recipe, tmp_path):
    options = ["total_minutes=0.5", "optimizer.warmup_steps=None", *LIGHT]
    options += ["optimizer.warmup_share=0.1", "log_every_steps=1"]
    done = run_in_process(recipe, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert "% of the time)" in done.stdout
    rates = [line["learning_rate"] for line in metrics(tmp_path) if "learning_rate" in line]
    assert rates[-1] < 0.01 * max(rates)
    last = json.loads((tmp_path / "time_used.json").read_text())["last_step"]
    assert last == metrics(tmp_path)[-1]["step"]
    page = (ROOT / "docs/files.md").read_text()
    written = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert "config.json" in written and not [name for name in written if f"`{name}" not in page]
    again = run_in_process(recipe, tmp_path, *options)
    assert again.returncode == 0 and f"already finished its {last} steps" in again.stdout
