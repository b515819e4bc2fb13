import json
import os
import subprocess
import sys

import pytest
from etils import epath

from can_jax import lock
from can_jax.errors import UserError
from can_jax.lock import run_lock


def test_lock_is_there_while_the_run_is_and_names_it(tmp_path):
    with run_lock(epath.Path(tmp_path)):
        held = json.loads((tmp_path / "lock.json").read_text())
        assert held["pid"] == os.getpid() and held["host"]
    assert not (tmp_path / "lock.json").exists()


def test_second_run_is_refused_with_the_first_ones_host_and_number(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    held = lock._me() | {"pid": holder.pid, "started": lock._started(holder.pid)}
    (tmp_path / "lock.json").write_text(json.dumps(held))
    expected = f"in use by process {holder.pid} on {held['host']}"
    with pytest.raises(UserError, match=expected), run_lock(epath.Path(tmp_path)):
        pass
    assert json.loads((tmp_path / "lock.json").read_text()) == held  # still the first one's
    holder.kill()
    holder.wait()
    with run_lock(epath.Path(tmp_path)):
        pass


def test_lock_of_another_process_with_the_same_number_is_stale(tmp_path, caplog):
    held = lock._me() | {"started": "another time"}
    (tmp_path / "lock.json").write_text(json.dumps(held))
    with run_lock(epath.Path(tmp_path)):
        assert "is gone without saying so" in caplog.text


@pytest.mark.parametrize("alive", [True, False])
def test_run_on_another_host_is_there_if_it_gives_a_sign(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    place = tmp_path / "lock.json"
    held = lock._me() | {"host": "elsewhere"}
    place.write_text(json.dumps(held))
    if alive:
        change = (
            "import json, sys, time; time.sleep(0.2); place = sys.argv[1];"
            "held = json.load(open(place)); held['beat'] += 1; json.dump(held, open(place, 'w'))"
        )
        subprocess.Popen([sys.executable, "-c", change, str(place)])
        with pytest.raises(UserError, match="elsewhere"), run_lock(epath.Path(tmp_path)):
            pass
    else:
        with run_lock(epath.Path(tmp_path)):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_lock_that_cannot_be_read_does_not_stop_a_run(tmp_path, content):
    (tmp_path / "lock.json").write_text(content)
    with run_lock(epath.Path(tmp_path)):
        pass
