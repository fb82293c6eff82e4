"""Signals: a run that is asked to stop saves first.

SIGTERM is what a batch system sends before it kills, SIGHUP what a terminal sends that is closed, and
Ctrl-C is what a person does. SIGUSR1 asks to save and go on, which batch systems send as a warning. All let
the compiled call at hand return, so that the state is whole when it is saved.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from pcflax.errors import Terminated
from pcflax.sharding.processes import largest

_STOPS = ("SIGTERM", "SIGINT")
# Taken only where nobody else does: their meaning is the program's.
_FREE = ("SIGHUP", "SIGUSR1")


class SignalCatcher:
    """Notes signals while it is entered, and puts the old handlers back.

    A signal that the process was told to ignore stays ignored, and one whose handler is not Python's
    stays with that, since it could not be put back. Outside the main thread, where Python allows no
    handlers, it notes nothing. In a process that is forked while it is entered, such as a worker that reads
    data, signals mean what they meant before. Entered while another one is, for a fit within a callback, it
    leaves all to that one: the fit within ends as ever, and the outer one, whose step is then told whole,
    saves and stops. `caught` is the signal that asks to stop, or None. A second Ctrl-C ends all at once, but
    for where it is `held`.
    """

    def __init__(self):
        self._process = os.getpid()
        self.caught: int | None = None
        self._save_asked = False
        self._holds = self._ends = False
        self._before: dict = {}

    def __enter__(self) -> SignalCatcher:
        if threading.current_thread() is threading.main_thread():
            for name in (*_STOPS, *_FREE):
                if hasattr(signal, name):  # Windows has two of them
                    self._take(getattr(signal, name), only_free=name in _FREE)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raise a second Ctrl-C behind the block, between whose lines it would lose something."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
        if self._ends:
            raise KeyboardInterrupt

    def save_asked(self) -> bool:
        """Return whether a checkpoint was asked for since the last call."""
        if asked := self._save_asked:
            self._save_asked = False  # only where it was seen: a signal may come at any time
        return asked

    def raise_caught(self) -> None:
        """Raise what the signal means, where one came: `Terminated` or `KeyboardInterrupt`.

        Of several processes in all, though it came to one.
        """
        caught = int(largest(self.caught or 0)[0])
        if caught == signal.SIGINT:
            raise KeyboardInterrupt
        if caught:
            raise Terminated(caught)

    def _take(self, number: int, only_free: bool) -> None:
        before = signal.getsignal(number)
        if before in (None, signal.SIG_IGN) or (only_free and before != signal.SIG_DFL):
            return
        if isinstance(getattr(before, "__self__", None), SignalCatcher):
            return
        self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number, frame) -> None:
        if os.getpid() != self._process:  # forked: who sends it wants the worker to end
            signal.signal(number, self._before[number])
            os.kill(os.getpid(), number)
            return
        if number == getattr(signal, "SIGUSR1", None):
            self._save_asked = True
            return
        if self.caught is not None and number == signal.SIGINT:
            self._ends = True
            if not self._holds:
                raise KeyboardInterrupt  # the second one does not wait
            return
        self.caught = number
