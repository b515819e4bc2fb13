"""Concurrent reading of several shards, whose records are interleaved."""

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

from can_jax.data.formats.shard_reader import Read

BLOCK_RECORDS, BLOCK_BYTES = 32, 2**22  # a block of records is complete at either limit
BLOCKS = 2  # the maximum number of blocks in the queue of a shard
POLL = 0.2  # seconds after which a waiting thread checks whether its shard is still needed


class Record(NamedTuple):
    """A record: the index of its shard, its index within the shard, the encoded image and the
    label."""

    shard: int
    number: int
    image: bytes
    label: int


def in_turns(read: Read, paths: list[str]) -> Iterator[Record]:
    """Yield the records of several shards in round-robin order, until all shards have ended.

    The order depends on the shards alone, and not on the timing of threads. If there is more than
    one shard, a thread per shard reads ahead, and releases the GIL while it reads and decompresses.
    """
    if len(paths) == 1:
        for number, (image, label) in enumerate(read(paths[0])):
            yield Record(0, number, image, label)
        return
    ended = threading.Event()
    readers = {shard: enumerate(_ahead(read, path, ended)) for shard, path in enumerate(paths)}
    try:
        while readers:
            for shard in list(readers):
                record = next(readers[shard], None)
                if record is None:
                    del readers[shard]
                else:
                    yield Record(shard, record[0], *record[1])
    finally:
        ended.set()


def _ahead(read: Read, path: str, ended: threading.Event) -> Iterator[tuple[bytes, int]]:
    """Yield the records of a shard. A background thread reads the records ahead, and stops when
    ``ended`` is set.

    Raises:
        BaseException: Any error that ``read`` raised in the thread.
    """
    blocks: queue.Queue[list[tuple[bytes, int]] | BaseException] = queue.Queue(BLOCKS)

    def put(block: list[tuple[bytes, int]] | BaseException) -> bool:
        while not ended.is_set():
            try:
                blocks.put(block, timeout=POLL)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        block: list[tuple[bytes, int]] = []
        size = 0
        try:
            for record in read(path):
                block.append(record)
                size += len(record[0])
                if len(block) >= BLOCK_RECORDS or size >= BLOCK_BYTES:
                    if not put(block):
                        return
                    block, size = [], 0
            if not block or put(block):
                put([])  # marks the end of the shard
        except BaseException as error:
            put(error)

    threading.Thread(target=run, name="shard-reader", daemon=True).start()
    while block := blocks.get():
        if isinstance(block, BaseException):
            raise block
        yield from block
