"""When a run calls a registered callback."""

import os
import signal
import time

from can_jax.train.callback import CALLBACKS, Callback, PeriodicAction
from can_jax.train.loop import Loop
from tests.helpers.runs import counting_steps, run_in_process


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


class Recorder(Callback):
    """Records its calls."""

    def __init__(self, calls, saves_first):
        self._calls, self._saves_first = calls, saves_first

    def on_train_start(self, step, state):
        self._calls.append(("start", step))

    def periodic_actions(self):
        return [PeriodicAction(4, self.act, self._saves_first)]

    def act(self, step, state):
        assert int(state.step) == step
        self._calls.append(("act", step))

    def on_train_end(self, state, seconds):
        self._calls.append(("end", int(state.step)))


def test_callback_is_called_in_each_run_and_saves_only_if_it_says_so(recipe, tmp_path, monkeypatch):
    options = ("probe.every_steps=0", "figures.every_steps=0", "checkpoint.every_steps=3")
    for saves_first, saved in ((False, [3, 6]), (True, [3, 4, 6])):
        calls = []

        def make(run, calls=calls, saves_first=saves_first):
            assert run.times.total == 6 and run.config.batch_size == 16
            return Recorder(calls, saves_first)

        monkeypatch.setattr(CALLBACKS, "_values", {"recorder": make})
        workdir = tmp_path / str(saves_first)
        with counting_steps():
            done = run_in_process(recipe, workdir, *options)
        assert done.returncode == 0, done.stderr
        assert calls == [("start", 0), ("act", 4), ("act", 6), ("end", 6)]
        assert steps_saved(workdir) == saved


class Sleeper(Callback):
    """Sleeps after each step, by another function each time."""

    def periodic_actions(self):
        return [PeriodicAction(1, lambda step, state: time.sleep(0.2))]


def test_time_of_an_action_is_reserved_once(recipe, tmp_path, monkeypatch):
    loops = []

    def call(loop, *arguments, original=Loop.__call__):
        loops.append(loop)
        return original(loop, *arguments)

    monkeypatch.setattr(CALLBACKS, "_values", {"sleeper": lambda run: Sleeper()})
    monkeypatch.setattr(Loop, "__call__", call)
    options = ("probe.every_steps=0", "figures.every_steps=0", "noise.linear_bound=False")
    with counting_steps():
        assert run_in_process(recipe, tmp_path, *options).returncode == 0
    assert 0.2 <= loops[0].end_seconds < 0.6  # not six times 0.2 s


def test_signal_at_the_last_step_leaves_its_evaluations_to_a_resume(recipe, tmp_path):
    def stop_at_the_end(number, state, metrics):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return state, metrics

    options = ("probe.every_steps=0", "figures.every_steps=6")
    with counting_steps(stop_at_the_end):
        done = run_in_process(recipe, tmp_path, *options)
    assert done.returncode == 75 and "step 6 is saved" in done.stderr
    assert "Finished" not in done.stdout and not list(tmp_path.glob("**/*.png"))
    with counting_steps():
        done = run_in_process(recipe, tmp_path, *options)
    assert done.returncode == 0 and "Finished" in done.stdout
    assert len(list(tmp_path.glob("**/*.png"))) == 1
