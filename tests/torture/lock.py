"""Let processes take the lock of a run directory at once, many times: one must get it each time.

    python -m tests.torture.lock --trials=500

The directory is new, or left by a process that is gone. The lock rests on kernel locks and
records, or on records alone. File operations take no time, or a random time.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import logging

from can_jax.checkpoint.lease.files import DiskFiles
from can_jax.checkpoint.lease.owner import describe
from can_jax.checkpoint.lease.protocol import Lease


class SlowFiles(DiskFiles):
    """Files whose operations take an exponentially distributed time.

    Args:
        folder: The directory.
        seconds: The mean; 0 for none.
        kernel_locks: Whether there are kernel locks.
    """

    def __init__(self, folder, seconds, kernel_locks):
        super().__init__(folder)
        self._kernel_locks = kernel_locks
        for name in ("read", "names", "create", "update", "replace", "remove", "lock"):
            setattr(self, name, self._slow(getattr(self, name), seconds))

    def lock(self):
        return super().lock() if self._kernel_locks else True

    @staticmethod
    def _slow(operation, seconds):
        def slow(*arguments):
            if seconds:
                time.sleep(random.expovariate(1 / seconds))
            return operation(*arguments)

        return slow


def take(folder, seconds, kernel_locks, start, answer, end):
    """Take the lock once `start` is closed, answer, and release it once `end` is closed."""
    random.seed(os.getpid())
    os.read(start, 1)
    lease = Lease(SlowFiles(folder, seconds, kernel_locks), describe(), "the directory")
    got = lease.take() is None
    if got:
        lease.check()
    os.write(answer, b"1" if got else b"0")
    os.read(end, 1)
    if got:
        lease.release()


def trial(folder, processes, seconds, kernel_locks, gone):
    """Return how many processes hold the lock at once, and the files that stay."""
    if gone:
        record = describe() | {"pid": gone, "started": "0"}
        (Path(folder) / ".lock-3").write_text(json.dumps(record))
        (Path(folder) / "lock.json").write_text(json.dumps(record))
    pipes = [os.pipe() for _ in range(3)]
    (start, go), (answers, answer), (end, over) = pipes
    children = []
    for _ in range(processes):
        if not (child := os.fork()):
            with contextlib.suppress(BaseException):
                os.close(go), os.close(over)
                take(folder, seconds, kernel_locks, start, answer, end)
            os._exit(0)
        children.append(child)
    os.close(go)
    held = sum(os.read(answers, 1) == b"1" for _ in children)
    os.close(over)
    for child in children:
        os.waitpid(child, 0)
    for pipe in (start, answers, answer, end):
        os.close(pipe)
    return held, sorted(os.listdir(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.003, help="of a slow file operation")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    ended = subprocess.Popen(["true"])
    ended.wait()
    found = collections.Counter()
    for number in range(arguments.trials):
        seconds, kernel_locks = arguments.seconds * (number % 2), number % 4 < 2
        gone = ended.pid if number % 8 < 4 else 0
        with tempfile.TemporaryDirectory() as folder:
            held, left = trial(folder, arguments.processes, seconds, kernel_locks, gone)
        found[held] += 1
        if held != 1 or left:
            print(f"trial {number}: {held} of {arguments.processes} hold it; left: {left}")
    print(f"holders in {arguments.trials} trials: {dict(found)}")
    sys.exit(set(found) != {1})


if __name__ == "__main__":
    main()
