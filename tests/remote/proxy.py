"""An HTTP proxy that delays requests and lets some fail.

`python -m tests.remote.proxy PORT UPSTREAM_PORT DELAY FAILING` serves until it is ended. DELAY is
in seconds, FAILING the fraction of requests that fail: half of them with status 503, and half in
the middle of the answer.
"""

import asyncio
import random
import re
import sys

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
LIMIT = 2**22


async def message(reader, head):
    """Return a request or an answer as its head and its body."""
    start = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(start)
    if not head and length:
        return start, await reader.readexactly(int(length[1]))
    body = b""
    if not head and b"transfer-encoding: chunked" in start.lower():
        while True:
            size = await reader.readuntil(b"\r\n")
            body += size + await reader.readexactly(int(size, 16) + 2)
            if not int(size, 16):
                break
    return start, body


async def serve(reader, writer, upstream, delay, failing):
    there = None
    try:
        while True:
            start, body = await message(reader, head=False)
            await asyncio.sleep(delay)
            dice = random.random()
            if dice < failing / 2:
                writer.write(REFUSED)
                continue
            there = there or await asyncio.open_connection("127.0.0.1", upstream, limit=LIMIT)
            there[1].write(start + body)
            start, body = await message(there[0], head=start.startswith(b"HEAD"))
            if dice < failing:
                writer.write(start + body[: len(body) // 2])
                break
            writer.write(start + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        for stream in (writer, *(there or ())[1:]):
            stream.close()


async def main(port, upstream, delay, failing):
    def serve_one(reader, writer):
        return serve(reader, writer, upstream, delay, failing)

    server = await asyncio.start_server(serve_one, "127.0.0.1", port, limit=LIMIT, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    random.seed(0)
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:5])))
