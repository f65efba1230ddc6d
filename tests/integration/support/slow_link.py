"""A link to the server that carries so many bytes a second and no more, and may break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

PIECE = 16384


@contextmanager
def slow_link(port: int, *, bytes_per_second: float, delay: float, breaks_after: Sequence[int] = ()) -> Iterator[int]:
    """A port of this machine that leads to ``port``, slowly: ``delay`` seconds for every piece, at most this rate.

    Whenever as many bytes as the next number of ``breaks_after`` have gone through in all, every connection is cut,
    and what was on its way is lost.
    """
    left, passed, writers = list(breaks_after), 0, set[asyncio.StreamWriter]()
    loop = asyncio.new_event_loop()
    ready: asyncio.Future[int] = loop.create_future()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal passed
        writers.add(writer)
        with suppress(ConnectionError, asyncio.CancelledError):
            while piece := await reader.read(PIECE):
                await asyncio.sleep(delay + len(piece) / bytes_per_second)
                passed += len(piece)
                if left and passed > left[0]:
                    left.pop(0)
                    for one in writers:
                        one.transport.abort()
                    break
                writer.write(piece)
                await writer.drain()
        writers.discard(writer)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(asyncio.CancelledError):
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    async def serve() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        ready.set_result(server.sockets[0].getsockname()[1])
        with suppress(asyncio.CancelledError):
            await server.serve_forever()

    async def end() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)
        loop.run_until_complete(end())
        loop.close()

    serving = loop.create_task(serve())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while not ready.done():
            thread.join(0.05)
        yield ready.result()
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(timeout=10)
