"""Changes files at random, and shows that their readers read them or refuse them in one line.

    python -m tests.torture.fuzz --reader=pth --mutations=10000 --seed=0

Every reader of files that may be anybody's is in `tests.torture.readers`; without --reader all are
tried. Files are changed as bytes, and within their format: numbers of JSON, members of archives,
with right checksums. The readers run in a process of their own, so that a crash is seen. A failure
is a crash, an exception that is no `UserError`, a `UserError` of several lines, more than
`SECONDS` for one file, or more than `MEMORY` bytes for it.
"""

import argparse
import collections
import io
import json
import os
import queue
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 20
MEMORY = 2**29
START_SECONDS = 300
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES = (
    -1, 0, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), True, None, "", "x" * 1000,
    "<img src=x onerror=alert(1)>", "../../etc/passwd", "\ud800", "\0\x1b[2J", [], {}, [[]],
    [1, 2, 3], {"a": {}}, "os.system", 0.5,
)  # fmt: skip


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four changes."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        length = min(rng.choice((1, 4, 8, 30, 512)), len(out))
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at % len(out)] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((4, 8))
            number = rng.choice(NUMBERS) % 256**size
            out[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            other = rng.randrange(len(out) + 1)
            out[at : at + length] = out[other : other + length]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """Return JSON with another value, key, or without one."""
    tree = json.loads(content)
    places: list = []
    todo: list = [tree]
    while todo:
        part = todo.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part))
        places += [(part, key) for key in keys]
        todo += [part[key] for key in keys if isinstance(part[key], dict | list)]
    part, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del part[key]
    elif kind == 1 and isinstance(part, dict):
        part[str(rng.choice(VALUES))] = part[key]
    elif kind == 2:
        return b"[" * rng.choice((10, 100_000)) + content
    elif kind == 3:
        return json.dumps(rng.choice(VALUES)).encode()
    else:
        part[key] = rng.choice(VALUES)
    return json.dumps(tree).encode()


def changed_zip(content: bytes, rng: random.Random) -> bytes:
    """Return an archive of which a member is changed, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = [name for name in members if name.endswith(".pkl")] or list(members)
    name = rng.choice(chosen)
    start = members[name][:128] if name.endswith(".npy") else members[name]
    members[name] = changed_bytes(start, rng) + members[name][len(start) :]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((0, 8))) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def changed(name: str, content: bytes, rng: random.Random) -> bytes:
    """Return the content of a file, changed."""
    from tests.torture.readers import fix_record, fix_tar

    suffix = name.rsplit(".", 1)[-1]
    deep = rng.random() < 0.6
    if deep and suffix == "json":
        return changed_json(content, rng)
    if deep and suffix in ("npz", "pth"):
        return changed_zip(content, rng)
    if deep and suffix == "safetensors":
        length = 8 + int.from_bytes(content[:8], "little")
        header = changed_json(content[8:length], rng) if rng.random() < 0.5 else b""
        header = header or changed_bytes(content[8:length], rng)
        return len(header).to_bytes(8, "little") + header + content[length:]
    if suffix == "npy" and rng.random() < 0.5:
        return changed_bytes(content[:128], rng) + content[128:]
    out = changed_bytes(content, rng)
    fix = {"tar": fix_tar, "tfrecord": fix_record}.get(suffix)
    return fix(out) if deep and fix else out


def memory() -> tuple[int, int]:
    """Return the bytes of memory that this process has, and the most that it ever had."""
    # Not `ru_maxrss`, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    now, most = (
        1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("VmRSS", "VmHWM")
    )
    return now, most


def outcome(read, folder: Path) -> str:
    """Return `read`, `refused`, or what went wrong."""
    from can_jax.utils.errors import UserError

    (before, most), result = memory(), "read"
    try:
        read(folder)
    except UserError as error:
        lines = str(error).splitlines()
        result = "refused" if len(lines) == 1 else f"several lines: {error}"
    except BaseException as error:  # also what ends a process
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error!s:.200} ({where.filename}:{where.lineno})"
    if (now := memory()[1]) > max(most, before + MEMORY):
        return f"memory: {now - before} bytes"
    return result


def one(reader, good: Path, folder: Path, rng: random.Random) -> str:
    """Change a file of a reader in a copy of its good files, and return what came of it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    paths = sorted(path for pattern in reader.files for path in folder.glob(pattern))
    chosen = rng.sample(paths, min(len(paths), rng.choice((1, 1, 2))))
    for path in set(paths) - set(chosen) if reader.alone else ():
        path.unlink()
    for path in chosen:
        path.write_bytes(changed(path.name, path.read_bytes(), rng))
    return outcome(reader.read, folder)


def child(names: list[str], first: int, mutations: int, seed: int) -> None:
    """Try mutations and print a line for each: before it, and its result."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from absl import logging

    from tests.torture.readers import READERS

    logging.set_verbosity(logging.FATAL)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the readers print
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            good = Path(place) / name
            good.mkdir()
            READERS[name].write(good)
            READERS[name].read(good)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 8 * MEMORY,) * 2)
        for number in range(first, mutations * len(names)):
            name = names[number // mutations]
            print(json.dumps(["began", number]), file=out)
            rng = random.Random(f"{name} {seed} {number % mutations}")
            result = one(READERS[name], Path(place) / name, Path(place) / "changed", rng)
            print(json.dumps(["ended", number, result]), file=out)


def fuzz(names: list[str], mutations: int, seed: int = 0) -> dict[str, collections.Counter[str]]:
    """Try so many mutations of each reader; return how often each result came.

    A process that crashes or hangs is started again behind the mutation that did it.
    """
    counts = {name: collections.Counter[str]() for name in names}
    number = 0
    while number < mutations * len(names):
        command = [sys.executable, "-m", "tests.torture.fuzz", "--child", f"--first={number}"]
        command += [f"--mutations={mutations}", f"--seed={seed}", *(f"--reader={n}" for n in names)]

        def note(ended: int, result: str) -> None:
            counts[names[ended // mutations]][result] += 1

        broke = watch(command, note)
        if broke is None:
            break
        number, how = broke
        note(number, f"{how} (mutation {number % mutations})")
        number += 1
    return counts


def watch(command: list[str], note: Callable[[int, str], None]) -> tuple[int, str] | None:
    """Run a process that tries mutations; return the one that ended it, and how, or None.

    Args:
        command: Of the process.
        note: Called with the number and the result of each mutation.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines: queue.Queue[str] = queue.Queue()
    errors: collections.deque[str] = collections.deque(maxlen=20)
    threads = [
        threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put("")]),
        threading.Thread(target=lambda: errors.extend(process.stderr)),
    ]
    for thread in threads:
        thread.start()
    began, wait = None, START_SECONDS
    try:
        while line := lines.get(timeout=wait):
            kind, number, *result = json.loads(line)
            began, wait = (number, SECONDS) if kind == "began" else (None, START_SECONDS)
            if result:
                note(number, result[0])
        how = f"crashes with {process.wait()}"
    except queue.Empty:
        process.kill()
        how = "hangs"
    code = process.wait()
    for thread in threads:
        thread.join()
    if began is None and code:
        raise RuntimeError(f"the readers do not start: {''.join(errors)}")
    return None if began is None else (began, how)


def failures(counts: dict[str, collections.Counter[str]]) -> list[str]:
    """Return each result that should not be, with its reader and how often it came."""
    return [
        f"{name}: {count} times {result}"
        for name, results in counts.items()
        for result, count in results.items()
        if result not in ("read", "refused")
    ]


def main() -> None:
    """Try mutations, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", action="append")
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.reader, options.first, options.mutations, options.seed)
        return
    from tests.torture.readers import READERS

    found = []
    for name in options.reader or READERS:
        started = time.monotonic()
        counts = fuzz([name], options.mutations, options.seed)
        seconds = time.monotonic() - started
        good = {result: counts[name][result] for result in ("read", "refused")}
        print(name, good, f"{seconds:.0f} s", flush=True)
        for line in failures(counts):
            print(" ", line, flush=True)
        found += failures(counts)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
