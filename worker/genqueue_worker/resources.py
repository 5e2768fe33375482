"""What a worker's host grants it: file descriptors, threads and memory.

Decides how many generations fit at once, and tells an error that is the host's lack of something from every
other.  The descriptors with the highest numbers are kept for what an end needs (Redis, the log, a name's
address): no upstream call is given one of them, so a worker that is full can still write what it has.
"""

import asyncio
import errno
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

try:
    import resource
except ImportError:  # Windows knows no such limits
    resource = None  # type: ignore[assignment]

KEPT_DESCRIPTORS = 32
"""So many, those with the highest numbers, are never an upstream connection's."""
_OWN_DESCRIPTORS = 48
"""What a worker opens beside upstream connections: 35 with one generator, under load."""
_RESOLVER_THREADS = 4
"""libuv's, if UV_THREADPOOL_SIZE says no other number."""
_SPARE_BYTES = 128 * 2**20
"""Of memory, beside the threads' stacks: for requests and texts, and for the threads that others start later."""
_LACKS = {
    getattr(errno, name): words
    for name, words in {
        "EMFILE": "this worker may open no more files (RLIMIT_NOFILE)",
        "ENFILE": "this host may open no more files",
        "ENOMEM": "this host is out of memory",
        "ENOBUFS": "this host is out of memory for connections",
        "ENOSPC": "this host's disk is full",
        "EDQUOT": "this host's disk is full for this user",
    }.items()
    if hasattr(errno, name)  # not every system has all
}
_UNRESOLVED = {socket.EAI_AGAIN, socket.EAI_MEMORY, getattr(socket, "EAI_SYSTEM", socket.EAI_AGAIN)}


def lack_of(error: BaseException) -> str:
    """This host's own lack, in words, that an error or what led to it is; "" if it is none.

    A lack is nobody else's fault: no endpoint's, and no defect of ours.
    """
    seen: set[int] = set()
    known: BaseException | None = error
    while known is not None and id(known) not in seen:
        seen.add(id(known))
        if isinstance(known, MemoryError):
            return _LACKS[errno.ENOMEM]
        if type(known) is RuntimeError and "can't start new thread" in str(known):
            return "this host starts no more threads"
        if isinstance(known, socket.gaierror):
            lack = "" if (trouble := _trouble_to_open()) is None else lack_of(trouble)
            return lack or ("this host's resolver of names does not answer" if known.errno in _UNRESOLVED else "")
        if isinstance(known, OSError) and known.errno in _LACKS:
            return _LACKS[known.errno]
        known = known.__cause__ or known.__context__
    return ""


def _trouble_to_open() -> OSError | None:
    """Why no file can be opened, which a resolver takes for a name that does not exist; None if one can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error
    return None


def wanted_descriptors(concurrency: int, in_use: int) -> int:
    """What a worker may need: each generation one connection, and one that is kept alive behind it."""
    return in_use + _OWN_DESCRIPTORS + 2 * concurrency + KEPT_DESCRIPTORS


def fitting(concurrency: int, limit: int, in_use: int) -> int:
    """How many generations may run at once, of ``concurrency``; less than 1 if there are too few for any."""
    return min(concurrency, limit - in_use - _OWN_DESCRIPTORS - KEPT_DESCRIPTORS)


def descriptors_in_use() -> int:
    """How many this process has open; 0 where the system does not say."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0


def raise_descriptor_limit(wanted: int) -> int | None:
    """Have this process be allowed so many descriptors, as far as whoever started it lets it.

    Returns:
        How many it may have; None where there is no limit.
    """
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted and soft != hard:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        except (ValueError, OSError):  # macOS allows less than it says
            return soft
        return raised
    return soft


def open_standard_streams() -> None:
    """Open what whoever started this process has closed: libuv ends a process that closes one of these numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one


def upstream_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket to an upstream address (family, type, protocol, …), if enough descriptors are left beside it.

    Raises:
        OSError: EMFILE, as if there were none.
    """
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    limit = None if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # The system gives the lowest number that is free.
    if limit is not None and limit != resource.RLIM_INFINITY and made.fileno() >= limit - KEPT_DESCRIPTORS:
        made.close()
        raise OSError(errno.EMFILE, "the descriptors that are left are kept for the ends of generations")
    return made


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within this block some memory is taken, which is there again behind it.

    Raises:
        MemoryError: there is not as much.
    """
    try:
        kept = mmap.mmap(-1, _SPARE_BYTES)  # never written to: only its addresses are taken
    except OSError as error:
        raise MemoryError(str(error)) from None
    with closing(kept):
        yield


async def start_resolver(loop: asyncio.AbstractEventLoop) -> None:
    """Start the threads that look up names, before others take what threads there are.

    libuv starts its own at the first lookup, and ends the process without a word where one of them cannot be.

    Raises:
        RuntimeError: too few threads can be started.
    """
    try_threads(_RESOLVER_THREADS)
    await loop.getaddrinfo("127.0.0.1", None, flags=socket.AI_NUMERICHOST)  # is none to ask a server for


def try_threads(count: int) -> None:
    """Start so many threads at once, and end them: others may have as many when this returns.

    Raises:
        RuntimeError: there are not as many.
    """
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()
        _leave_the_system(started)


def _leave_the_system(threads: list[threading.Thread]) -> None:
    """Wait until the system counts them no more, which is a little after ``join``: for a second, where it says it."""
    for _ in range(1000):
        if not any(os.path.exists(f"/proc/self/task/{thread.native_id}") for thread in threads):
            return
        time.sleep(0.001)
