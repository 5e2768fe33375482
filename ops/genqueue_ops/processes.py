"""Run a child process that tells in its log when it is ready, and that never outlives us.

This module decides how a child is started, watched and ended.  What it says when it is ready
is its owner's to know.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from genqueue.errors import GenqueueError

# Linux ends a child with its parent only if the child asks for it (prctl, PR_SET_PDEATHSIG = 1,
# SIGKILL = 9), and keeps that over exec.  Asking from a tiny program that becomes the child needs
# no preexec_fn, which is unsafe in a process that has threads.  The parent may be gone by then.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ChildError(GenqueueError):
    """A child could not be run or ended when it should not; the message holds the end of its log."""


class Child:
    """One process at a time, started from the same command with the same log.

    It ends with us on Linux even when we are killed; elsewhere it would then live on.

    Args:
        name: for people, and for error messages.
        command: program and arguments; the program is an absolute path.
        log: takes its stdout and stderr, anew at each start; its folder is the working directory.
        environ: None for our own environment.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self._environ = environ
        self._command = list(command)
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start the process.

        Raises:
            ChildError: the program cannot be run.

        To PR_SET_PDEATHSIG the parent is the *thread* that started the child: one that is restarted
        from a short-lived thread would die with that thread.  So each gets a thread that lives as
        long as it does.
        """
        command = self._command
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        outcome: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()

        def be_its_parent() -> None:
            try:
                with self.log.open("wb") as log:
                    process = subprocess.Popen(
                        command,
                        cwd=self.log.parent,
                        env=self._environ,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C goes to us, and we end our children in order
                    )
            except OSError as error:
                outcome.put(error)
                return
            outcome.put(process)
            process.wait()

        threading.Thread(target=be_its_parent, name=f"parent of {self.name}", daemon=True).start()
        started = outcome.get()
        if isinstance(started, OSError):
            raise ChildError(f"{self._command[0]} cannot be run: {started}") from started
        self.process = started

    def wait_until(self, is_ready: Callable[[str], bool], within_s: float) -> None:
        """Wait until ``is_ready`` is content with the log so far.

        Raises:
            ChildError: it ended before, or is not ready in time.
        """
        deadline_s = time.monotonic() + within_s
        while not is_ready(self.logged()):
            self.check("at once ")
            if time.monotonic() > deadline_s:
                raise ChildError(f"{self.name} was not ready within {within_s:g} s:\n{self.log_tail()}")
            time.sleep(0.01)

    def check(self, when: str = "") -> None:
        """Raise ChildError if the process has ended."""
        if self.process.poll() is not None:
            raise ChildError(f"{self.name} ended {when}with status {self.process.returncode}:\n{self.log_tail()}")

    def end(self, how: signal.Signals = signal.SIGTERM, within_s: float = 10.0) -> None:
        """Send the signal and wait for the end; SIGKILL follows where it is not obeyed in time."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(how)
        self.process.send_signal(signal.SIGCONT)  # a paused process obeys nothing but SIGKILL
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def logged(self) -> str:
        """What it has written since its start."""
        return self.log.read_text(errors="replace")

    def log_tail(self, lines: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self.logged().splitlines()[-lines:]) or "(its log is empty)"


_READY_WITHIN_S = 60.0


def started(
    opened: ExitStack,
    folder: Path,
    arguments: list[str],
    ready: str,
    environ: Mapping[str, str] | None = None,
    *,
    name: str | None = None,
    end_with: signal.Signals = signal.SIGTERM,
) -> Child:
    """A ``genqueue`` command that has logged ``ready`` in a whole line; ``opened`` ends it.

    Args:
        opened: ends it, by ``end_with``.
        folder: has its log, and is where it runs.
        arguments: of the command.
        ready: what it logs when it is ready.
        environ: None for our own environment.
        name: for people; the command's if None.
        end_with: what it is told to end.

    Raises:
        ChildError: it ended before, or is not ready in time.
    """
    # -P keeps the caller's folder from hiding a module.
    command = [sys.executable, "-P", "-m", "genqueue", *arguments]
    child = Child(name or arguments[0], command, folder / f"{arguments[0]}.log", environ)
    child.start()
    opened.callback(child.end, end_with)
    child.wait_until(lambda logged: ready in logged and logged.endswith("\n"), _READY_WITHIN_S)
    return child
