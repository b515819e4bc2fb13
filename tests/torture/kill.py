"""Disturbs a run again and again, and shows that it ends as if nothing had happened.

    python -m tests.torture.kill --kills=100 --steps=240 -- --config.data.source=arrays \
        --config.data.path=/data/cifar10 --config.data.image_size=32

Runs a tiny recipe once in peace. Then it runs it once more, while each start is disturbed at a
random moment from its first second on: it gets SIGKILL, SIGTERM or SIGINT, it is suspended and
killed once it has gone on, its disk is full, or its checkpoints cannot be read. Both runs must end
with the same metrics and the same state, to the last bit; a run that ends before all disturbances
were made is compared, and another one is begun. With `--processes=2` a job of two is
disturbed: a signal goes to one of them. What stands after `--` goes to all runs.

A full disk takes the right to mount a file system; without it that kind is left out.
"""

import argparse
import collections
import contextlib
import ctypes
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from can_jax.utils.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_REFUSED,
    EXIT_UNEXPECTED,
)
from tests.helpers.runs import RECIPE, ROOT, assert_same_run, command, heeding_signals

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
KINDS = (*SIGNALS, "STOP/CONT, KILL", "full disk", "unreadable")
# How a start may end by itself. A survivor of a job ends as after a fault.
ENDS = {
    "KILL": {-signal.SIGKILL, EXIT_UNEXPECTED},
    "TERM": {EXIT_PREEMPTED, -signal.SIGTERM},  # the second before the first line of the program
    "INT": {EXIT_INTERRUPTED, EXIT_PREEMPTED, -signal.SIGINT},
    "STOP/CONT, KILL": {-signal.SIGKILL, EXIT_UNEXPECTED},
    "full disk": {-signal.SIGKILL, EXIT_REFUSED},
    "unreadable": {-signal.SIGKILL, EXIT_REFUSED},
}
DISK = 2**28  # bytes
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def options(steps: int) -> list[str]:
    """Saves at nearly every moment, and probes and figures now and then."""
    return [
        f"total_steps={steps}", "checkpoint.every_steps=2", "checkpoint.keep_last=2",
        f"probe.every_steps={max(steps // 4, 1)}", f"figures.every_steps={max(steps // 4, 1)}",
    ]  # fmt: skip


def bound_by_modes() -> None:
    """Let the program that this process becomes read only what modes allow, also as root."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability)


class Job:
    """A start of the run, with its processes.

    Args:
        arguments: The command of each.
    """

    def __init__(self, arguments: list[str], processes: int):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        join = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
        self.training = threading.Event()
        self.lines: list[str] = []
        self.processes = [
            subprocess.Popen(
                heeding_signals(
                    arguments if processes == 1 else [*arguments, *join, f"--process={number}"]
                ),
                cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                preexec_fn=bound_by_modes,
            )
            for number in range(processes)
        ]  # fmt: skip
        self._listeners = [
            threading.Thread(target=self._listen, args=(process,), daemon=True)
            for process in self.processes
        ]
        for listener in self._listeners:
            listener.start()

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            self.lines.append(line)
            if line.startswith("compiled the train step"):
                self.training.set()

    @property
    def ended(self) -> bool:
        """Whether a process has ended."""
        return any(process.poll() is not None for process in self.processes)

    def wait(self, seconds: float) -> list[int]:
        """Wait for all processes, and return their exit codes. Those that take longer are killed,
        as launchers do."""
        end = time.monotonic() + seconds
        while any(p.poll() is None for p in self.processes) and time.monotonic() < end:
            time.sleep(0.05)
        self.kill()
        for listener in self._listeners:
            listener.join(10)
        return [process.wait() for process in self.processes]

    def kill(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()


def disturb(
    job: Job, kind: str, workdir: Path, rng: random.Random, life: float
) -> tuple[list[int], int | None]:
    """Disturb a start at a random moment.

    Some starts are disturbed before they train. The others train for ``life`` seconds on average:
    most of them shorter, a few five times as long, which is enough for a probe and a save.

    Returns:
        The exit codes, and which process got a signal that it can answer.
    """
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, 8))
    else:
        while not job.training.wait(0.05) and not job.ended:
            pass
        time.sleep(rng.uniform(0, life if rng.random() < 0.7 else 5 * life))
    if job.ended:
        return job.wait(60), None
    if kind in SIGNALS:
        target = rng.randrange(len(job.processes))
        job.processes[target].send_signal(SIGNALS[kind])
        return (job.wait(1), None) if kind == "KILL" else (job.wait(90), target)
    if kind == "STOP/CONT, KILL":
        suspended = rng.choice(job.processes)
        suspended.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 5))
        suspended.send_signal(signal.SIGCONT)
        time.sleep(rng.uniform(0, 3))
        return job.wait(0), None
    with full(workdir) if kind == "full disk" else unreadable(workdir):
        end = time.monotonic() + rng.uniform(0, 6)
        while time.monotonic() < end and not job.ended:
            time.sleep(0.05)
        return job.wait(20 if job.ended else 0), None


@contextlib.contextmanager
def full(workdir: Path):
    """Leave no byte on the run's disk."""
    ballast = workdir.parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def unreadable(workdir: Path):
    """Let nobody look into the run's checkpoints."""
    folder = workdir / "checkpoints"
    there = folder.exists()
    if there:
        folder.chmod(0)
    try:
        yield
    finally:
        if there:
            folder.chmod(0o755)


@contextlib.contextmanager
def small_disk(place: Path):
    """Mount a small file system, and yield whether that was allowed."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def in_peace(arguments: list[str], processes: int, workdir: Path) -> tuple[float, float]:
    """Make a start that nobody disturbs, to the run's end.

    Returns:
        Seconds from the compiled step to the first checkpoint, and from there to the end.
    """
    job = Job(arguments, processes)
    while not job.training.wait(0.05) and not job.ended:
        pass
    began = saved = time.monotonic()
    while not latest(workdir) and not job.ended:
        time.sleep(0.05)
        saved = time.monotonic()
    if any(job.wait(3600)):
        sys.exit(f"a run that nobody disturbs failed: {''.join(job.lines)}")
    return saved - began, time.monotonic() - saved


def torture(
    recipe: Path,
    folder: Path,
    kills: int,
    steps: int,
    extra: list[str],
    seed: int = 0,
    processes: int = 1,
    kinds: tuple[str, ...] = KINDS,
) -> tuple[dict[str, collections.Counter[str]], int]:
    """Run in peace and disturbed, and compare.

    Returns:
        For each kind of disturbance, how often each exit code was seen, and how many runs were
        compared.
    """
    rng = random.Random(seed)
    with small_disk(folder / "disk") as mounted:
        fire, peace = folder / "disk/fire", folder / "peace"
        if "full disk" in kinds and not mounted:
            print("full disks are left out: no file system can be mounted here")
            kinds = tuple(kind for kind in kinds if kind != "full disk")
        lives = {
            place: [*command(recipe, place, *options(steps)), *extra] for place in (fire, peace)
        }
        first, rest = in_peace(lives[peace], processes, peace)
        life = first + rest / kills
        seen: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in kinds}
        made, compared = 0, 0
        while made < kills:
            kind = rng.choice(kinds)
            job = Job(lives[fire], processes)
            codes, target = disturb(job, kind, fire, rng, life)
            if not any(codes):
                assert_same_run(peace, fire, steps)
                shutil.rmtree(fire)
                compared += 1
                continue
            made += 1
            text = "".join(job.lines)
            others = {-signal.SIGKILL} | ({EXIT_UNEXPECTED} if processes > 1 else set())
            wrong = not set(codes) <= ENDS[kind] | others
            if target is not None:  # a survivor may end as after a fault, this one may not
                wrong |= codes[target] not in ENDS[kind] | {-signal.SIGKILL}
            if wrong or "Traceback" in text:
                sys.exit(f"after {made} disturbances, {kind} ended with {codes}: {text}")
            seen[kind][" ".join(map(str, codes))] += 1
            print(f"{made}: {kind}: {codes}; saved: {latest(fire)}", flush=True)
        in_peace(lives[fire], processes, fire)
        assert_same_run(peace, fire, steps)
    return seen, compared + 1


def latest(workdir: Path) -> int:
    """Return the step of the newest checkpoint; 0 without any."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if re.fullmatch(r"\d+", name)), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("extra", nargs="*", help="options of the run, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "tiny.py"
        recipe.write_text(RECIPE)
        seen, compared = torture(
            recipe, Path(folder), given.kills, given.steps, given.extra, given.seed, given.processes
        )
    print("| disturbed by | starts | exit codes |\n|---|---|---|")
    for kind, codes in seen.items():
        shown = ", ".join(f"{code} ({count})" for code, count in sorted(codes.items()))
        print(f"| {kind} | {codes.total()} | {shown} |")
    print(f"and the same to the last bit, {compared} times")


if __name__ == "__main__":
    main()
