import json

import numpy as np
import pytest

from can_jax.config import default_config
from can_jax.monitoring.loss_spikes import LossSpikeDetector


def guard(state=None, limit=0, **spike):
    config = default_config()
    config.skipped_updates_limit = limit
    config.spike.update({"deviations": 6.0, "steps": 5} | spike)
    return LossSpikeDetector(config, state)


def test_updates_that_are_skipped_in_a_row_reach_the_limit_a_few_steps_late():
    watch = guard(limit=3)
    skipped = [0, 1, 2, 2, 3, 4, 5, 5, 5, 5]  # two in a row, one that was good, three in a row
    told = [watch(np.nan, count) for count in skipped]
    assert told == [None] * 8 + ["broken", None]
    never = guard(limit=0)
    assert not any(never(np.nan, count) for count in range(20))


def losses(jump_at=300, length=5, seed=0):
    """A loss that falls with a little noise, and for some steps is far above."""
    rng = np.random.default_rng(seed)
    steps = np.arange(400)
    falling = 3 * np.exp(-steps / 200) + 0.05 * rng.standard_normal(400)
    return falling + 8.0 * ((steps >= jump_at) & (steps < jump_at + length))


@pytest.mark.parametrize(
    ("series", "options", "found"),
    [
        (losses(), {}, [306]),  # at the fifth step of the jump, two steps late
        (losses(length=4), {}, []),
        (losses(length=90), {}, [306]),  # said once
        (losses(jump_at=60), {}, []),  # there is no course to leave yet
        (losses(), {"steps": 0}, []),
        (losses(), {"deviations": 60.0}, []),
    ],
)
def test_jump_of_the_loss(series, options, found):
    watch = guard(**options)
    assert [i for i, loss in enumerate(series) if watch(loss, 0) == "spike"] == found


def test_guard_that_goes_on_says_what_it_would_have_said():
    series = losses()
    for cut in (3, 99, 299, 302, 305):
        whole, watch = guard(), guard()
        for i, loss in enumerate(series):
            if i == cut:
                watch = guard(json.loads(json.dumps(watch.state)))
            assert watch(loss, 0) == whole(loss, 0)
        assert watch.state == whole.state


def test_updates_that_are_not_finite_do_not_change_the_course():
    watch, other = guard(), guard()
    for loss in losses()[:200]:
        watch(loss, 0)
        other(loss, 0)
    for _ in range(7):
        watch(np.nan, 0)
    watch(1.0, 0), watch(1.0, 0), watch(1.0, 0)
    other(1.0, 0), other(1.0, 0), other(1.0, 0)
    assert watch.state == other.state
