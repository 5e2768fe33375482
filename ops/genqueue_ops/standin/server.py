"""Serve a stand-in: for tests in their own loop, for the command line until a signal."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from genqueue.errors import ConfigError
from genqueue_ops.standin.app import Standin
from genqueue_ops.standin.engine import Engine
from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.script import Script
from genqueue_ops.standin.scripted import ScriptedEngine


@dataclass(frozen=True, slots=True)
class Served:
    """A running stand-in."""

    url: str
    """``http://host:port``, no slash at the end."""
    standin: Standin
    """For tests in the same process: ``script``, ``journal``, ``metrics``."""

    def requests(self) -> list[dict[str, Any]]:
        """What ``GET /standin/requests`` answers."""
        return self.standin.journal.entries()


@asynccontextmanager
async def serve(
    script: Script | None = None,
    *,
    engine: Engine | None = None,
    limits: Limits | None = None,
    max_batch: int | None = None,
    api_key: str | None = None,
    keep_alive_s: float = 15.0,
    host: str = "127.0.0.1",
    port: int = 0,
    shutdown_s: float = 0.0,
) -> AsyncIterator[Served]:
    """Serve on the running loop for as long as the block lasts.

    Args:
        script: pace and faults to begin with.
        engine: the model; the scripted one if not given.
        limits: the router's.
        max_batch: sequences that run at once; None: as many as have a permit.
        api_key: see ``Standin``.
        keep_alive_s: see ``Standin``.
        host: to listen on.
        port: 0 takes a free one.
        shutdown_s: how long requests in flight may go on at the end.

    Raises:
        ConfigError: nothing can listen there.
    """
    engine = engine or ScriptedEngine()
    limits = limits or Limits()
    await engine.start()
    try:
        standin = Standin(
            engine,
            script=script or Script(),
            limits=limits,
            max_batch=max_batch or limits.max_concurrent_requests,
            api_key=api_key,
            keep_alive_s=keep_alive_s,
        )
        runner = web.AppRunner(
            standin.application(),
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=3600,
            shutdown_timeout=max(shutdown_s, 0.01),  # aiohttp takes 0 for endless
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, backlog=1024)
            try:
                await site.start()
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
                raise ConfigError(f"host, port: cannot listen on {host}:{port}: {reason}") from error
            yield Served(f"http://{host}:{runner.addresses[0][1]}", standin)
        finally:
            await cleanup(runner)
    finally:
        await engine.close()


async def cleanup(runner: web.AppRunner) -> None:
    """As ``runner.cleanup()``, without losing a connection that has just been accepted."""
    try:
        for site in runner.sites:
            if site._server is not None:  # nothing public leads to it
                await stop_accepting(site._server)
    finally:
        await runner.cleanup()


async def stop_accepting(server: asyncio.AbstractServer) -> None:
    """Have ``server`` know all that it accepted, so that it can be closed.

    asyncio loses a connection whose server is closed in the turn of the loop after it was accepted: it
    stays open, and nobody knows it (https://github.com/python/cpython/issues/109564).  With TLS a
    protocol still hears of one only after its handshake.
    """
    if isinstance(server, asyncio.Server):  # uvloop's loses none
        for listening in server.sockets:
            server.get_loop().remove_reader(listening.fileno())
    for _ in range(2):  # until connection_made
        await asyncio.sleep(0)
