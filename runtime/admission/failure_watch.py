"""A thread that breaks a rank's transfers off when another rank has failed.

On GPUs the rank's own host may wait for them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import distributed_c10d

from ditplan.runtime.admission.channel import Channel
from ditplan.runtime.groups import GroupCache

LOOK_S = 0.5


class FailureWatch:
    """Looks into the store of the ranks while a call is made."""

    def __init__(self, channel: Channel, groups: GroupCache) -> None:
        self._groups = groups
        self._store: Any = distributed_c10d._get_default_store()
        self._name = f"ditplan failures of {channel.group.group_name}"
        self._failures = 0
        self._is_called, self._is_closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For so long as a call is made."""
        self._is_called.set()
        try:
            yield
        finally:
            self._is_called.clear()

    def tell(self) -> None:
        """Has all ranks break off."""
        self._store.set(self._key, "failed")

    def forget(self) -> None:
        """The failure is over, on all ranks."""
        self._failures += 1

    def close(self) -> None:
        """Ends the thread."""
        self._is_closed.set()
        self._is_called.set()
        self._thread.join()

    @property
    def _key(self) -> str:
        return f"{self._name}: {self._failures}"

    def _look(self) -> None:
        broken = ""
        while not self._is_closed.wait(LOOK_S):
            self._is_called.wait()
            key = self._key
            if key != broken and self._store.check([key]):
                self._groups.break_off()
                broken = key
