"""Signals: a run that is asked to stop saves first.

SIGTERM is what a batch system sends before it kills; Ctrl-C is what a person does. Both let the
compiled call at hand return, so that the state is whole when it is saved.
"""

from __future__ import annotations

import signal
import threading

from .errors import Terminated


class SignalCatcher:
    """Notes SIGTERM and Ctrl-C while it is entered, and puts the old handlers back.

    Outside the main thread, where Python allows no handlers, it notes nothing.

    Attributes:
        caught: the signal that came, or None.
    """

    def __init__(self):
        self.caught: int | None = None
        self._before: dict = {}

    def __enter__(self) -> SignalCatcher:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_caught(self) -> None:
        """Raise what the signal means, where one came: `Terminated` or `KeyboardInterrupt`."""
        if self.caught == signal.SIGTERM:
            raise Terminated
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt

    def _handle(self, number, frame) -> None:
        del frame
        if self.caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second one does not wait
        self.caught = number
