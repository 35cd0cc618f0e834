"""One pool of ranks for the whole test run: starting processes is what takes the time."""

import signal
from collections.abc import Iterator

import pytest

from ditplan.runtime.ranks.pool import RankPool


class SharedRanks:
    """Holds a pool of CPU ranks and starts a new one when a test has broken it."""

    def __init__(self, size: int = 4) -> None:
        self._size = size
        self._pool: RankPool | None = None

    def pool(self) -> RankPool:
        """A pool that works."""
        if self._pool is None or not self._pool.is_open:
            self._pool = RankPool(None, self._size, "cpu", start_timeout_s=600)
        return self._pool

    def close(self) -> None:
        """Ends the ranks."""
        if self._pool is not None:
            self._pool.close()


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive() -> None:
    """A shell has what it runs in the background ignore interrupts, and so do programs started
    there: those that tests interrupt shall not.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _code_is_kept_for_this_run_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code that an earlier test run left would be taken for what this one compiles."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_ranks() -> Iterator[SharedRanks]:
    """The one holder of ranks; tests use `ranks`."""
    shared = SharedRanks()
    yield shared
    shared.close()


@pytest.fixture
def ranks(shared_ranks: SharedRanks) -> RankPool:
    """Four CPU ranks (gloo) that have run, and will run, other tests' functions too."""
    return shared_ranks.pool()


@pytest.fixture(scope="session")
def shared_pair() -> Iterator[SharedRanks]:
    """The one holder of two ranks; tests use `pair`."""
    shared = SharedRanks(2)
    yield shared
    shared.close()


@pytest.fixture
def pair(shared_pair: SharedRanks) -> RankPool:
    """Two CPU ranks, for what needs all ranks there are."""
    return shared_pair.pool()
