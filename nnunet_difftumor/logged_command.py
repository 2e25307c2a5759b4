"""Running another program: its output goes to the terminal and to a log as it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_GRACE_SECONDS = 60.0
_LOG_LINES_SHOWN = 25


def run_logged(words: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a command.

    Args:
        words: The command.
        environment: Variables that it gets on top of those of this process.
        log: File for its output; replaced.

    Returns:
        Its exit status.
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
            while chunk := os.read(process.stdout.fileno(), 65536):
                file.write(chunk)
                file.flush()
                sys.stdout.write(chunk.decode("utf-8", errors="replace"))
                sys.stdout.flush()
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told the command too; let it save its state
            _wait_or_kill(process, _GRACE_SECONDS)
            raise
        except BaseException:
            process.terminate()
            _wait_or_kill(process, _GRACE_SECONDS)
            raise


def program(name: str) -> str:
    """Return the program that was installed with this Python; its bare name where there is none."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else name


def end_of_log(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES_SHOWN:])


def _wait_or_kill(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
