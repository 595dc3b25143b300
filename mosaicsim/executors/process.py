"""Workers as processes of this host: a pipe to each, its output in a file of the result folder.

A worker whose coordinator dies reads the end of the pipe and kills itself with all it has started.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from mosaicsim.executors.link import Inbox
from mosaicsim.executors.messages import Command, Died, Message


class ProcessLink:
    """A worker process; see :class:`mosaicsim.executors.link.Link`."""

    def __init__(self, environment: Mapping[str, str], output: Path, inbox: Inbox) -> None:
        """Start it with ``environment`` on top of this process's; stdout and stderr go to ``output``."""
        self._inbox = inbox
        self._pipe, theirs = Pipe()
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mosaicsim.executors.process", str(theirs.fileno())],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the coordinator, which then tells the workers
            )
        theirs.close()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """See Link."""
        with suppress(OSError):
            self._pipe.send(command)

    def kill(self) -> None:
        """See Link."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._inbox.put((self, self._pipe.recv()))
        self.kill()  # what the process started does not outlive it
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._inbox.put((self, Died(time.monotonic(), how)))


def serve(pipe: Connection) -> None:
    """Be a worker: commands from the pipe, messages into it, until told to quit."""
    from mosaicsim.executors.worker import Worker

    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                commands.put(pipe.recv())
        except (EOFError, OSError):  # the coordinator is gone
            os.killpg(os.getpgid(0), signal.SIGKILL)

    def send(message: Message) -> None:
        pipe.send(message)

    threading.Thread(target=listen, daemon=True).start()
    Worker(commands, send).run()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
    os._exit(0)  # an engine's own clean-up at exit can hang
