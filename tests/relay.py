"""Leads a TCP port, which it prints, to the Unix socket that it is given.

It is a process of its own because libpq's ping keeps Python's lock: no thread of the one that pings could answer.
"""

from __future__ import annotations

import asyncio
import sys


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    back, forth = await asyncio.open_unix_connection(sys.argv[1])
    await asyncio.gather(_carry(reader, forth), _carry(back, writer))


async def _main() -> None:
    server = await asyncio.start_server(_relay, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(_main())
