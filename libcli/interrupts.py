"""Ending by a signal, and a Ctrl-C while a script is still loading its libraries; see libcli/__init__.py."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def say(message: str) -> None:
    """Print a line on stderr, after the script's name."""
    name = "python" if sys.argv[0] == "-m" else os.path.basename(sys.argv[0])
    print(f"{name}: {' '.join(message.splitlines())}", file=sys.stderr)


def end_by(signum: int, message: str) -> NoReturn:
    """Say why and end by the signal itself, as shells want it that stop after a Ctrl-C; nothing is left to clean up."""
    say(message)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    sys.exit(128 + signum)


def interrupted(signum: int = signal.SIGINT, frame: object = None) -> NoReturn:
    """End by a Ctrl-C."""
    end_by(signal.SIGINT, "interrupted; run the same command again to go on")


def _passed_over(frame: FrameType) -> bool:
    ours = frame.f_globals["__name__"] in (__name__, "libcli", "libdata", "libmodels")
    return ours or "importlib" in frame.f_code.co_filename


def _loaded_by_a_script() -> bool:
    if sys.argv[0] == "-m":  # what Python says while it looks for the module to run
        return True
    frame: FrameType | None = sys._getframe(1)
    while frame and _passed_over(frame):
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"] == "__main__"


def _end_while_loading() -> None:
    """Make a Ctrl-C one line until `libcli.run`, where a script is run; notebooks and tests keep theirs."""
    if _loaded_by_a_script() and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


_end_while_loading()
