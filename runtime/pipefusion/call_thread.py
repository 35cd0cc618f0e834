"""Calls that suspend themselves until they are resumed, each in a thread; one runs at a time.

Threads, not greenlets: grad mode, autocast and other modes belong to a thread, and a call that
is suspended inside of them must not leave them to others.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch


class Stopped(BaseException):
    """Ends a suspended call; no pipeline catches it."""


class CallThread:
    """A call in a thread of its own; it runs only while `resume` waits for it."""

    def __init__(self, call: Callable[["CallThread"], Any], device: torch.device) -> None:
        """`call` gets this object and begins with the first `resume`."""
        self._call = call
        self._device = device
        self._mine, self._others = threading.Semaphore(0), threading.Semaphore(0)
        self._given: Any = None
        self._asked: Any = None
        self._error: BaseException | None = None
        self._stopped = False
        self.finished = False
        modes = _Modes(device)
        self._thread = threading.Thread(target=self._run, args=(modes,), daemon=True)
        self._thread.start()

    def resume(self, value: Any = None) -> Any:
        """Goes on with `value` until the call is suspended or ends; gives its request or result.

        Raises:
            whatever the call raised.
        """
        self._given = value
        if self._device.type == "cuda":
            self._stream = torch.cuda.current_stream(self._device)
        self._mine.release()
        self._others.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._asked

    def suspend(self, request: Any) -> Any:
        """Called in the call: hands out a request, waits, and gives what it was resumed with."""
        self._asked = request
        self._others.release()
        return self._wait()

    def stop(self) -> None:
        """Ends the call where it is suspended."""
        if self._thread.is_alive():
            self._stopped = True
            with contextlib.suppress(Stopped):
                self.resume()
            self._thread.join()

    def _wait(self) -> Any:
        self._mine.acquire()
        if self._stopped:
            raise Stopped
        if self._device.type == "cuda":
            torch.cuda.set_stream(self._stream)
        return self._given

    def _run(self, modes: "_Modes") -> None:
        try:
            with modes.entered():
                self._wait()
                self._asked = self._call(self)
        except BaseException as error:  # noqa: BLE001 (raised again where it is resumed)
            self._error = error
        self.finished = True
        self._others.release()


class _Modes:
    """Those modes of the calling thread that decide what torch computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = torch.is_autocast_enabled(device.type)
        self._autocast_dtype = torch.get_autocast_dtype(device.type)

    def entered(self) -> ExitStack:
        """The same modes in the thread that calls this, until the result is closed."""
        undo = ExitStack()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        undo.enter_context(torch.inference_mode(self._inference))
        undo.enter_context(torch.set_grad_enabled(self._grad))
        if self._autocast:
            undo.enter_context(torch.autocast(self._device.type, self._autocast_dtype))
        return undo
