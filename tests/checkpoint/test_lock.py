import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from etils import epath

from can_jax.checkpoint import lock
from can_jax.checkpoint.lease import files, owner
from can_jax.checkpoint.lease.files import KERNEL_LOCK, BucketFiles, DiskFiles, creates_exclusively
from can_jax.checkpoint.lease.protocol import Lease
from can_jax.checkpoint.lock import run_lock
from can_jax.data.storage import remote
from can_jax.utils.errors import LostLock, UserError
from tests.helpers.runs import counting_steps, metrics, run_in_process

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from can_jax.checkpoint.lease.protocol import Lease
from can_jax.checkpoint.lease.files import DiskFiles
from can_jax.checkpoint.lease.owner import describe

lease = Lease(DiskFiles(sys.argv[1]), describe(), "it", 0.2)
assert lease.take() is None
for number in range(int(sys.argv[2])):
    lease.beat(ending=len(sys.argv) > 3)
    if number == 0:
        print("held", flush=True)
    time.sleep(0.1)
lease.release()
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.0)


@pytest.fixture
def place(tmp_path):
    return epath.Path(tmp_path)


def held_elsewhere(folder, **changes):
    """Write the record of a holder that this process did not start."""
    record = owner.describe() | {"host": "elsewhere", "boot": "another", "pid": 4711} | changes
    (folder / "lock.json").write_text(json.dumps(record))
    return record


def holder(folder, beats=600, *flags):
    """Start a process that holds a directory."""
    command = [sys.executable, "-c", HOLD, str(folder), str(beats), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_lock_is_there_while_the_run_is_and_names_it(place):
    with run_lock(place):
        held = json.loads((place / "lock.json").read_text())
        assert held["pid"] == os.getpid() and held["host"]
    assert list(place.iterdir()) == []


def test_second_run_is_refused_with_the_first_ones_host_and_number(place, capfd):
    first = holder(place)
    try:
        expected = f"in use by process {first.pid} on "
        with pytest.raises(UserError, match=expected), run_lock(place):
            pass
        first.kill()  # and its parent does not wait for it, so that it stays as a zombie
        end = time.monotonic() + 10
        while owner.started(first.pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert Path(f"/proc/{first.pid}").exists()
        with run_lock(place):
            pass
    finally:
        first.kill()
        first.wait()


def test_suspended_run_keeps_its_directory(place):
    """In a container too: the kernel's lock does not ask for process IDs."""
    first = holder(place)
    try:
        first.send_signal(19)
        record = place / ".lock-1"
        for changes in ({}, {"namespace": "another"}):
            record.write_text(json.dumps(json.loads(record.read_text()) | changes))
            with pytest.raises(UserError, match="in use"), run_lock(place):
                pass
    finally:
        first.kill()
        first.wait()


def test_run_that_is_about_to_end_is_waited_for(place, caplog):
    first = holder(place, 12, "ending")
    with run_lock(place):
        assert first.wait(10) == 0
    assert (
        f"process {first.pid} on " in caplog.text and "still saving; waiting up to" in caplog.text
    )


def test_run_that_is_told_to_stop_says_so(place):
    with run_lock(place) as held:
        assert "ending" not in (place / ".lock-1").read_text()
        held.end_soon()
        end = time.monotonic() + 10
        while '"ending": true' not in (place / ".lock-1").read_text() and time.monotonic() < end:
            time.sleep(0.02)
        assert '"ending": true' in (place / ".lock-1").read_text()


@pytest.mark.parametrize("gone", [
    {"started": "another time"}, {"pid": 2**22 + 1}, {"pid": None}, {"pid": "1"},
])  # fmt: skip
def test_lock_of_a_process_of_this_host_that_is_gone_is_stale(place, caplog, gone, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 100.0)  # nothing is waited for
    (place / "lock.json").write_text(json.dumps(owner.describe() | gone))
    with run_lock(place):
        assert "ended without releasing its lock" in caplog.text


@pytest.mark.parametrize("where", [
    {"boot": "another"}, {"namespace": "another"}, {"boot": None}, {"host": "elsewhere"},
], ids=["host", "container of the same name", "old version", "renamed"])  # fmt: skip
@pytest.mark.parametrize("alive", [True, False])
def test_run_on_another_host_is_there_if_it_gives_a_sign(place, where, alive):
    held = owner.describe() | {"pid": os.getppid(), "started": "1", "beat": 0} | where
    path = place / "lock.json"
    path.write_text(json.dumps(held))
    same_host = list(where) == ["host"]
    if alive and not same_host:
        change = threading.Timer(0.2, path.write_text, [json.dumps(held | {"beat": 1})])
        change.start()
        with pytest.raises(UserError, match="in use by process"), run_lock(place):
            pass
        change.join()
        assert json.loads(path.read_text()) == held | {"beat": 1}  # still the first one's
    else:  # a process of this host is known to be gone, whatever its host is called now
        begin = time.monotonic()
        with run_lock(place):
            assert (time.monotonic() - begin < 0.5) == same_host


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\x00" * 9])
def test_lock_that_cannot_be_read_does_not_stop_a_run(place, content):
    (place / "lock.json").write_text(content)
    (place / ".lock-4").write_text(content)
    (place / ".lock-x").write_text(content)
    with run_lock(place):
        pass


@pytest.mark.parametrize("how", ["copy", "record", "removed"])
def test_run_that_was_taken_over_writes_nothing_more_and_leaves_the_others_lock(place, how):
    expected = "removed" if how == "removed" else "process 4711"
    with run_lock(place) as held:
        held.check()
        if how != "removed":
            other = held_elsewhere(place)
        if how == "record":
            (place / "lock.json").rename(place / ".lock-2")
        if how == "removed":
            (place / ".lock-1").unlink()
        with pytest.raises(LostLock, match=expected):
            held.check()
    if how != "removed":
        left = place / ("lock.json" if how == "copy" else ".lock-2")
        assert json.loads(left.read_text()) == other


def test_beat_finds_out_that_another_has_taken_over(place):
    claim = Lease(DiskFiles(str(place)), owner.describe(), "it", 0.05)
    assert claim.take() is None
    path = Path(place / ".lock-1")
    before, status = path.read_text(), path.stat()
    claim.beat()
    assert path.read_text() != before
    # In place: there may be no space for another file.
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    (place / ".lock-1").rename(place / ".lock-2")  # which is not this claim's any longer
    claim.beat()
    assert isinstance(claim.lost, LostLock) and not (place / ".lock-1").exists()
    claim.release()
    assert (place / ".lock-2").exists()


class Failing(DiskFiles):
    """A disk that fails for some time."""

    until = 0.0

    def read(self, name):
        if time.monotonic() < self.until:
            raise OSError(5, "Input/output error")
        return super().read(name)


@pytest.mark.parametrize(("seconds", "stops"), [(0.2, False), (1.5, True)])
def test_storage_that_fails_stops_the_run_once_another_could_have_got_in(place, seconds, stops):
    disk = Failing(str(place))
    claim = Lease(disk, owner.describe(), "it", 0.3)
    assert claim.take() is None
    disk.until = time.monotonic() + seconds
    if stops:
        with pytest.raises(OSError, match="could not be read for 1 s: OSError:.*Input/output"):
            claim.check()
        disk.until = 0.0
        with pytest.raises(OSError, match="another run may have taken over"):
            claim.check()  # for good
    else:
        claim.check()
        assert time.monotonic() > disk.until


def test_beats_that_fail_are_counted_and_reported_once(place, caplog):
    disk = Failing(str(place))
    claim = Lease(disk, owner.describe(), "it", 0.3)
    assert claim.take() is None
    disk.until = time.monotonic() + 60
    for _ in range(5):
        claim.beat()
    assert caplog.text.count("could not be renewed in 2 consecutive attempts") == 1


def test_directory_that_cannot_be_locked_is_refused_in_one_line(place):
    (place / "file").write_text("")
    expected = pytest.raises(UserError, match="cannot be locked: Not a directory")
    with expected, run_lock(place / "file"):
        pass


def test_file_system_without_kernel_locks_rests_on_records(place):
    (place / KERNEL_LOCK).mkdir()
    with run_lock(place), pytest.raises(UserError, match="in use"), run_lock(place):
        pass


def create_file(path, content, mode):
    """Write a file as `can_jax.data.storage.remote.write` creates an object."""
    assert mode == "create"
    whole = Path(f"{path}.{threading.get_ident()}.tmp")
    whole.write_bytes(content)
    try:
        os.link(whole, path)
    finally:
        whole.unlink()


def test_only_a_cloud_creates_exclusively(place):
    assert creates_exclusively("gs://bucket/run")
    assert creates_exclusively("s3://bucket/run")
    assert not creates_exclusively("hdfs://server/run")
    assert not creates_exclusively(str(place / "x"))


def test_repeated_request_finds_its_own_record(place, monkeypatch):
    monkeypatch.setattr(files, "creates_exclusively", lambda url: True)
    monkeypatch.setattr(remote, "write", create_file)
    (place / "record").write_text("mine")
    assert BucketFiles(place).create("record", "mine")
    assert not BucketFiles(place).create("record", "another's")


@pytest.mark.parametrize("exclusive", [True, False])
def test_bucket_has_one_holder(place, monkeypatch, exclusive):
    """The operations for buckets, on a folder: with exclusive creation, and without."""
    monkeypatch.setattr(files, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(files, "creates_exclusively", lambda url: exclusive)
    monkeypatch.setattr(remote, "write", create_file)
    claims = [Lease(BucketFiles(place), owner.describe(), "it", 1.0) for _ in range(4)]
    threads = ThreadPoolExecutor(4)
    found = list(threads.map(Lease.take, claims))
    assert found.count(None) == 1
    holder = claims[found.index(None)]
    holder.beat(ending=True)
    holder.check()
    other = next(claim for claim in claims if claim is not holder)
    assert other.take() is not None
    holder.release()
    assert list(place.iterdir()) == []
    assert other.take() is None


def test_released_lease_can_be_taken_again(place, monkeypatch):
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.1)
    claim = Lease(BucketFiles(place), owner.describe(), "it", 1.0)
    for _ in range(2):
        assert claim.take() is None
        claim.check()
        claim.release()
        assert isinstance(claim.lost, LostLock)


def test_start_does_not_import_jax_to_take_a_lock():
    program = "import sys, can_jax.checkpoint.lease.protocol; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_run_ends_before_it_writes_once_another_has_its_directory(recipe, place):
    def take_over():
        end = time.monotonic() + 120
        while len(metrics(place) if (place / "metrics.jsonl").exists() else []) < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
        held_elsewhere(place)
        seen.append(metrics(place)[-1]["step"])

    seen: list[int] = []
    taker = threading.Thread(target=take_over)
    taker.start()
    with counting_steps():
        done = run_in_process(
            recipe, place, "total_steps=100000", "probe.every_steps=0", "figures.every_steps=0",
            "checkpoint.every_steps=1",
        )  # fmt: skip
    taker.join()
    assert done.returncode == 1
    assert "was taken over by process 4711 on elsewhere" in done.stderr.splitlines()[-1]
    assert metrics(place)[-1]["step"] <= seen[0] + 1
    assert json.loads((place / "lock.json").read_text())["pid"] == 4711
