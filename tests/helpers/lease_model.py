"""Every interleaving of the file operations of a few holders of one directory.

The model runs `can_jax.checkpoint.lease.protocol.Lease` itself. A holder's operations are recorded;
to take one more step, its program runs again on the recorded results and is stopped at the first
operation without one. So a state is the files and the recorded results; equal states are explored
once.

A holder that takes no step for a while is a suspended one; `crash` ends one for good.
"""

import dataclasses
from collections import Counter
from typing import Any

from can_jax.checkpoint.lease.owner import Host
from can_jax.checkpoint.lease.protocol import Clock, Lease
from can_jax.utils.errors import UserError


class Pause(BaseException):
    """An exception that stops a program at the first operation without a recorded result."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process of the model.

    Attributes:
        name: The token of the process.
        boot: The boot ID of its kernel; kernel locks work between processes with equal boot IDs.
        namespace: The namespace of its process IDs.
        actions: The actions on the directory, in order: `write`, `beat` or `release`.
        recreates: Whether its updates can bring a removed file back, as in a bucket.
    """

    name: str
    boot: str = "one"
    namespace: str = "one"
    actions: tuple[str, ...] = ("write", "beat", "write", "release")
    recreates: bool = False

    @property
    def owner(self) -> dict[str, Any]:
        pid, started = ord(self.name), "0"
        return {
            "token": self.name, "host": "same", "boot": self.boot, "namespace": self.namespace,
            "pid": pid, "started": started,
        }  # fmt: skip


class Replay(Host, Clock):
    """The files, host and clock of a holder: recorded results, then a pause.

    Args:
        holder: The process.
        results: The results of its operations so far.
    """

    def __init__(self, holder, results):
        self.holder, self.results, self.at, self.seconds = holder, results, 0, 0.0
        self.pending = None
        self.writes = 0

    def _do(self, *operation):
        if self.pending is None and self.at < len(self.results):
            self.at += 1
            result = self.results[self.at - 1]
            if result == "error":
                raise OSError(5, "Input/output error")
            return result
        self.pending = self.pending or operation
        raise Pause

    def read(self, name):
        return self._do("read", name)

    def names(self):
        return self._do("names")

    def create(self, name, text):
        if not self._do("create", name, ""):
            return False
        try:
            self._do("fill", name, text)
        except OSError:
            self._do("remove", name)
            raise
        return True

    def update(self, name, text):
        if not self.holder.recreates:
            return self._do("update", name, text)
        if self._do("read", name) is None:
            return False
        self._do("replace", name, text)
        return True

    def replace(self, name, text):
        return self._do("replace", name, text)

    def remove(self, name):
        return self._do("remove", name)

    def lock(self):
        return self._do("lock")

    def unlock(self):
        return self._do("unlock")

    def has(self, owner):
        return all(owner.get(k) == self.holder.owner[k] for k in ("boot", "namespace"))

    def shares_kernel(self, owner):
        return owner.get("boot") == self.holder.boot

    def is_gone(self, owner):
        return self._do("is_gone", owner["token"])

    def now(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += max(seconds, 31.0)  # one look at a beat before a holder is taken for gone


class Model:
    """The exploration of one scenario.

    Args:
        holders: The processes, which all start at once.
        files: What the directory holds, by name.
        takeovers: Whether a holder may be suspended for so long that it is taken for gone. If not,
            interleavings in which that happens are left out.
        kernel_locks: Whether the file system has them.
        crashes: How many holders may crash.
        errors: How many operations may fail.
        change: Called with each `Lease`, to damage it.
    """

    def __init__(
        self, holders, files=None, takeovers=True, kernel_locks=True, crashes=0, errors=0,
        change=lambda lease: None,
    ):  # fmt: skip
        self.holders, self.takeovers, self.kernel_locks = holders, takeovers, kernel_locks
        self.crashes, self.errors, self.change = crashes, errors, change
        self.alive = {holder.name for holder in holders}
        self.numbers: dict[Any, int] = {}  # of directories and histories, which states hold
        self.values: list[Any] = []
        self.runs: dict[tuple[int, int], Any] = {}
        self.effects: dict[Any, Any] = {}
        self.first_files = self._number(tuple(sorted((files or {}).items())))
        self.ends: Counter[tuple[str, ...]] = Counter()
        self.states = 0

    def explore(self) -> list[str]:
        """Return the order of writes of each interleaving that must not be, by holder."""
        histories = (self._number(()),) * len(self.holders)
        start = (self.first_files, "", histories, "", "", self.errors)
        seen, stack, wrong = {start}, [start], set()
        while stack:
            state = stack.pop()
            self.states += 1
            outcomes = [self._outcome(state, index) for index in range(len(self.holders))]
            if all(outcomes):
                self.ends[tuple(outcomes)] += 1
                continue
            for index, outcome in enumerate(outcomes):
                for new in [] if outcome else self._following(state, index):
                    if new not in seen:
                        seen.add(new)
                        stack.append(new)
                        if self._is_wrong(new[3]):
                            wrong.add(new[3])
        return sorted(wrong)

    def _number(self, value: Any) -> int:
        """Return a small number for a value, which makes states small."""
        number = self.numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number

    def _is_wrong(self, writes: str) -> bool:
        """Return whether one wrote again after another, or two did without a takeover."""
        again = len(set(writes)) < len(writes)
        return again or (not self.takeovers and len(writes) > 1)

    def _run(self, index: int, history: int) -> tuple[str, Any, int]:
        """Run a program on a history: its outcome, or its next operation, and its writes."""
        if (found := self.runs.get((index, history))) is None:
            replay = Replay(self.holders[index], self.values[history])
            outcome = self._outcome_of(replay)
            found = self.runs[index, history] = outcome, replay.pending, replay.writes
        return found

    def _outcome_of(self, replay: Replay) -> str:
        lease = Lease(replay, replay.holder.owner, "run", host=replay, clock=replay)
        self.change(lease)
        try:
            if lease.take() is not None:
                return "refused"
            for action in replay.holder.actions:
                if action == "write":
                    lease.check()
                    replay.writes += 1
                else:
                    getattr(lease, action)()
            return "done"
        except Pause:
            return ""
        except UserError:
            return "lost"
        except OSError:
            return "failed"

    def _outcome(self, state, index: int) -> str:
        dead = self.holders[index].name in state[4]
        return "crashed" if dead else self._run(index, state[2][index])[0]

    def _following(self, state, index: int):
        """Yield the states after the next operation of a holder, or its crash."""
        files, kernel, histories, writes, dead, errors = state
        name = self.holders[index].name
        _, operation, written = self._run(index, histories[index])
        if len(dead) < self.crashes:
            yield files, kernel.replace(name, ""), histories, writes, dead + name, errors
        key = (files, kernel, dead, index, operation)
        if key not in self.effects:
            self.effects[key] = self._effects(*key)
        for failed, after, kernel_after, result in self.effects[key]:
            if failed > errors:
                continue
            grown = self._number((*self.values[histories[index]], result))
            everyone = (*histories[:index], grown, *histories[index + 1 :])
            wrote = self._run(index, grown)[2] > written and not writes.endswith(name)
            order = writes + name if wrote else writes
            yield after, kernel_after, everyone, order, dead, errors - failed

    def _effects(self, number: int, kernel: str, dead: str, index: int, operation):
        """What an operation may do: whether it fails, and the files, kernel locks and result."""
        files, holder = dict(self.values[number]), self.holders[index]
        kind, name, text = (*operation, None, None)[:3]
        result: Any = None
        if kind == "read":
            result = files.get(name)
        elif kind == "names":
            result = tuple(sorted(files))
        elif kind == "create":
            result = name not in files
            if result and not self.takeovers and self._holds(files, name, dead):
                return []
        elif kind == "update":
            result = name in files
        elif kind == "fill":  # the file that was just created, unless it was removed
            result = files.get(name) == ""
        elif kind == "is_gone":
            result = name in dead or name not in self.alive
        elif kind == "lock":
            taken = {other.boot for other in self.holders if other.name in kernel}
            result = not self.kernel_locks or holder.boot not in taken
            if result and self.kernel_locks:
                kernel = "".join(sorted(kernel + holder.name))
        elif kind == "unlock":
            kernel = kernel.replace(holder.name, "")
        if kind == "replace" or (result and kind in ("create", "fill", "update")):
            files[name] = text
        elif kind == "remove":
            files.pop(name, None)
        effects = [(0, self._number(tuple(sorted(files.items()))), kernel, result)]
        if self.errors and kind not in ("lock", "unlock", "is_gone"):
            effects.append((1, number, kernel, "error"))
        return effects

    def _holds(self, files, name: str, dead: str) -> bool:
        """Return whether the record before a new one is of a live process."""
        before_name = f".lock-{int(name.removeprefix('.lock-')) - 1}"
        before = files.get(before_name)
        if before == "" and before_name not in dict(self.values[self.first_files]):
            return True  # it is being written
        return before is not None and any(
            f'"token": "{other}"' in before for other in self.alive if other not in dead
        )
