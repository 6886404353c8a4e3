"""Bytes between a WebSocket and what runs inside a job, in both directions, each no faster than its reader."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from scheduler.executor import Entered

_PIECE_BYTES = 64 << 10
_LAST_WORDS_SECONDS = 2.0
"""For what a program has written and nobody has sent yet; what it left running may keep its output open for ever."""
_OUTPUT, _ERRORS = b"\x01", b"\x02"
_SIGNALS = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "KILL")


async def serve_program(websocket: WebSocket, entered: Entered) -> None:
    """Carries bytes until the program has ended or the caller has gone; closes `entered`."""
    streams = [(_OUTPUT, entered.output_fd)]
    if entered.error_fd is not None:
        streams.append((_ERRORS, entered.error_fd))
    sending = asyncio.Lock()
    pumps = [asyncio.create_task(_pump(websocket, fd, mark, sending)) for mark, fd in streams]
    leaving = asyncio.create_task(_take_in(websocket, entered))
    ending = asyncio.create_task(_until_ended(entered.control))
    try:
        await asyncio.wait([leaving, ending], return_when=asyncio.FIRST_COMPLETED)
        if ending.done() and not leaving.done():
            await asyncio.wait(pumps, timeout=_LAST_WORDS_SECONDS)
            async with sending:
                await websocket.send_text(json.dumps({"exit_code": ending.result()}))
                await websocket.close(1000)
    except (WebSocketDisconnect, RuntimeError):
        return  # it went away between two pieces
    finally:
        await _end(*pumps, leaving, ending)
        entered.close()


async def serve_port(websocket: WebSocket, connection: socket.socket) -> None:
    """Carries bytes until both sides have closed or one is broken; closes the connection."""
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    to_job = asyncio.create_task(_to_job(websocket, writer))
    from_job = asyncio.create_task(_from_job(websocket, reader))
    try:
        await asyncio.wait([to_job, from_job], return_when=asyncio.FIRST_COMPLETED)
        if from_job.done() and not to_job.done():
            await asyncio.wait([to_job], timeout=_LAST_WORDS_SECONDS)
        if to_job.done() and to_job.exception() is None and to_job.result():
            await from_job  # the caller has said all, and hears the rest
        with contextlib.suppress(RuntimeError):
            await websocket.close(1000)
    except (WebSocketDisconnect, OSError, RuntimeError):
        return
    finally:
        await _end(to_job, from_job)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _to_job(websocket: WebSocket, writer: asyncio.StreamWriter) -> bool:
    """Returns True after half a close, False when the caller has gone."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return False
        if message.get("bytes"):
            writer.write(message["bytes"])
            await writer.drain()
        elif message.get("text"):
            writer.write_eof()
            return True


async def _from_job(websocket: WebSocket, reader: asyncio.StreamReader) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        await websocket.send_bytes(piece)
    await websocket.send_text('{"eof": true}')


async def _pump(websocket: WebSocket, fd: int, mark: bytes, sending: asyncio.Lock) -> None:
    """Sends what comes out of a descriptor until its end."""
    while True:
        try:
            piece = os.read(fd, _PIECE_BYTES)
        except BlockingIOError:
            await _until_ready(fd, for_writing=False)
            continue
        except OSError:
            return  # EIO: the last program at a terminal has gone
        if not piece:
            return
        async with sending:
            await websocket.send_bytes(mark + piece)


async def _take_in(websocket: WebSocket, entered: Entered) -> None:
    """Takes in what the caller types and asks for until it goes away. A program that reads no more ends nothing."""
    is_open = True
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if (data := message.get("bytes")) is not None:
            if is_open and len(data) > 1:
                is_open = await _write(entered.input_fd, data[1:])
            elif is_open and entered.error_fd is not None:
                is_open = False
                entered.close_input()
        else:
            _obey(entered, message.get("text") or "")


def _obey(entered: Entered, text: str) -> None:
    """Does what a text asks; what is not understood changes nothing."""
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
        asked = json.loads(text)
        if "resize" in asked and entered.error_fd is None:
            rows, columns = asked["resize"]
            if 0 < rows < 10_000 and 0 < columns < 10_000:
                entered.resize((int(rows), int(columns)))
        elif asked.get("signal") in _SIGNALS:
            number = signal.Signals[f"SIG{asked['signal']}"].value
            entered.control.send(json.dumps({"do": "signal", "number": number}).encode())


async def _write(fd: int, data: bytes) -> bool:
    """Writes all of it; False when nobody reads any more."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            await _until_ready(fd, for_writing=True)
        except OSError:
            return False
    return True


async def _until_ended(control: socket.socket) -> int | None:
    """Returns the program's exit status; None where it is told otherwise, or not at all."""
    try:
        data = await asyncio.get_running_loop().sock_recv(control, 4096)
        return int(json.loads(data)["exit_code"]) if data else None
    except (OSError, ValueError, KeyError):
        return None


async def _until_ready(fd: int, *, for_writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def ring() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if for_writing else loop.add_reader)(fd, ring)
    try:
        await ready
    finally:
        (loop.remove_writer if for_writing else loop.remove_reader)(fd)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels what still runs, and takes in how each ended: no exception of theirs is news."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
