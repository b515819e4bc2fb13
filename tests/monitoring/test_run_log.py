import re

import pytest
from absl import logging
from etils import epath

from can_jax.monitoring.run_log import RunLog
from can_jax.utils.errors import LostLock, Preempted, UserError

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ")


def texts(path):
    lines = path.read_text().splitlines()
    assert all(map(LINE.match, lines))
    return [LINE.sub("", line, count=1) for line in lines]


def end(log, error, place=None, *messages):
    with log:
        if place is not None:
            log.open(epath.Path(place))
        for message in messages:
            log.say(message)
        raise error


def test_lines_are_kept_from_before_the_directory_is_known_to_the_error(tmp_path):
    log = RunLog()
    with log:
        logging.warning("%d images", 3)
        log.say("a [b] :smile: \udce9")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError):
        end(log, UserError("no more"), tmp_path, "a table\nof lines")
    logging.warning("of another run")
    first, second, *table, last = texts(tmp_path / "log.txt")
    assert first == "WARNING: 3 images" and second == "a [b] :smile: \\udce9"
    assert table == ["a table", "of lines"] and last == "error: no more"


def test_run_that_lost_its_directory_writes_no_more_there(tmp_path):
    with pytest.raises(LostLock):
        end(RunLog(), LostLock("taken over"), tmp_path, "a line")
    assert texts(tmp_path / "log.txt") == ["a line"]


def test_next_start_appends(tmp_path):
    for number in range(2):
        with pytest.raises(Preempted):
            end(RunLog(), Preempted(f"stopped {number}"), tmp_path)
    assert texts(tmp_path / "log.txt") == ["stopped 0", "stopped 1"]


def test_what_cannot_be_written_waits(tmp_path):
    log, place = RunLog(), tmp_path / "run"
    with log:
        log.open(epath.Path(place))  # is not there yet
        log.say("first")
        place.mkdir()
        log.say("second")
    assert texts(place / "log.txt") == ["first", "second"]


def test_refused_start_writes_nothing(tmp_path):
    with pytest.raises(UserError):
        end(RunLog(), UserError("no"), None, "here")
    assert list(tmp_path.iterdir()) == []
