"""A server on h11 that logs every request it parsed, and one that only takes what nginx and Apache hand on.

    h11_server.py PORT LOG     the h11 server
    h11_server.py PORT         the one behind nginx and Apache: it answers with the length and the hash of the body
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import h11


class Server:
    def __init__(self, log: Path | None) -> None:
        self.log = log.open("a", buffering=1) if log else None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.connection(reader, writer)
        except (ConnectionError, h11.LocalProtocolError):
            pass
        finally:
            writer.close()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        while True:
            request, hashed, length = None, hashlib.sha256(), 0
            while True:
                try:
                    event = http.next_event()
                except h11.RemoteProtocolError as error:
                    if request:
                        self.tell(request, hashed, length, complete=False)
                    elif http.trailing_data[0]:
                        self.write({"malformed": str(error), "raw": http.trailing_data[0][:300].decode("latin-1"), "complete": False})
                    if http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                        await self.answer(http, writer, 400, [])
                    return
                if event is h11.NEED_DATA:
                    if http.they_are_waiting_for_100_continue:
                        writer.write(http.send(h11.InformationalResponse(status_code=100, headers=[])))
                    try:
                        http.receive_data(await reader.read(65536))
                    except ConnectionError:
                        if request:
                            self.tell(request, hashed, length, complete=False)
                        raise
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    hashed.update(event.data)
                    length += len(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            trailers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers.raw_items()]
            self.tell(request, hashed, length, complete=True, trailers=trailers)
            probe = [value for name, value in request.headers if name == b"x-probe"]
            echo = [("X-Saw-Probe", printable(probe[0]) if probe else b"-"), ("X-Saw", printable(request.method) + b" " + printable(request.target))]
            await self.answer(http, writer, 200, [*echo, ("X-Body", f"{length}:{hashed.hexdigest()}")])
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def answer(self, http: h11.Connection, writer: asyncio.StreamWriter, status: int, lines: list) -> None:
        writer.write(http.send(h11.Response(status_code=status, headers=[*lines, ("Content-Length", "2")])))
        writer.write(http.send(h11.Data(data=b"ok")) or b"")
        writer.write(http.send(h11.EndOfMessage()) or b"")
        await writer.drain()

    def tell(self, request: h11.Request, hashed, length: int, *, complete: bool, trailers: list | None = None) -> None:
        target = request.target.decode("latin-1")
        try:
            path = unquote_to_bytes(urlsplit(target).path if not target.startswith("//") else target.partition("?")[0]).decode()
        except ValueError:
            path = None
        lines = [(name.decode(), value.decode("latin-1")) for name, value in request.headers.raw_items()]
        method = request.method.decode()
        self.write({"method": method, "target": target, "path": path, "lines": lines, "trailers": trailers or [], "length": length, "hash": hashed.hexdigest(), "complete": complete})

    def write(self, entry: dict) -> None:
        if self.log:
            self.log.write(json.dumps(entry) + "\n")


def printable(text: bytes) -> bytes:
    return re.sub(rb"[^\x21-\x7e]", b"?", text)


async def main() -> None:
    log = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    server = await asyncio.start_server(Server(log).serve, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
