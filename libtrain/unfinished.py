"""The state of a training that is not done: to go on from it, to save it now and then, and to leave when asked to."""

from __future__ import annotations

import libcli as cli

import time
from collections.abc import Callable, Mapping
from typing import Any

from libmodels.checkpoints import read_checkpoint, to_bytes
from libstore.store import Output


class Unfinished:
    """Where the state is kept and when it is saved; whoever saves the result removes it.

    Args:
        output: Where it is kept.
        save_every: Seconds between two saved states; 0 saves whenever that is possible.
        stopping: Returns the signal that asks to stop, else 0.
        made_by: Provenance of what is saved.
    """

    def __init__(
        self,
        output: Output,
        *,
        save_every: float = 60.0,
        stopping: Callable[[], int] = lambda: 0,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        self.output, self.save_every, self.stopping, self.made_by = output, save_every, stopping, made_by or {}
        self._saved = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """Return what was saved, or None.

        Raises:
            InputError: It belongs to other settings, or is damaged; the message shows both.
        """
        return read_checkpoint(self.output.path) if self.output.finished() else None

    def pause(self, state: Callable[[], dict[str, Any]], done: str) -> None:
        """Save what the rest of the training depends on if it is time to, or if asked to stop, and leave then.

        Args:
            state: Returns it, as tensors and plain values.
            done: How far the training is, for the message.

        Raises:
            Stopped: It was asked to stop.
        """
        signum = self.stopping()
        if signum or time.monotonic() - self._saved >= self.save_every:
            self.output.save(to_bytes(state()), self.made_by)
            self._saved = time.monotonic()
        if signum:
            where = self.output.path.parent
            raise cli.Stopped(signum, f"{where}: stopped after {done}; run the same command again to go on")
