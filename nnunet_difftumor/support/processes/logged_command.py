"""Running another program: its output goes to the terminal and to a log as it comes, and it ends when we do."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_GRACE_SECONDS = 60.0
_POLL_SECONDS = 1.0
_LOG_LINES_SHOWN = 25


def run_logged(words: Sequence[str], environment: Mapping[str, str], log: Path, *, is_told_to_end: bool = True) -> int:
    """Run a command and return its exit status.

    Args:
        environment: Variables that it gets on top of those of this process.
        log: File for its output; replaced.
        is_told_to_end: On Ctrl-C, the terminal tells the command as well; False: there is no terminal.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        assert process.stdout is not None
        try:
            for chunk in _chunks(process.stdout.fileno()):
                file.write(chunk)
                file.flush()
                sys.stdout.write(chunk.decode("utf-8", errors="replace"))
                sys.stdout.flush()
            return process.wait()
        except BaseException as error:
            if not (isinstance(error, KeyboardInterrupt) and is_told_to_end):
                process.terminate()
            try:
                process.wait(_GRACE_SECONDS)  # it may save its state
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise


def _chunks(pipe: int) -> Iterator[bytes]:
    """What a pipe brings until it is closed; Python gets a turn every second, so that Ray can interrupt a task."""
    while True:
        if select.select([pipe], [], [], _POLL_SECONDS)[0]:
            chunk = os.read(pipe, 65536)
            if not chunk:
                return
            yield chunk


def program(name: str) -> str:
    """Return the program that was installed with this Python; its bare name where there is none."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else name


def end_of_log(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """End on SIGTERM as if by Ctrl-C, with a `SystemExit`, so that the running command is ended too.

    The handler of before is back afterwards. A process pool of the same process would inherit this one, and a worker
    that is told to end while it starts can lose the exception: its pool then waits for it for ever.
    """
    before: Any = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: Any) -> None:
    sys.exit(128 + number)
