"""What a rank says of a run of a plan."""

from ditplan.profiles.record import FrozenModel


class Phase(FrozenModel):
    """What a rank did from when to when, in seconds of its host's clock, in a step counted from 1.

    `category` is a part of a prediction, as `simulate`'s traces have it. What `is_under_way` is an
    exchange beside which the rank may do something else.
    """

    rank: int
    step: int
    name: str
    category: str
    start_s: float
    end_s: float
    is_under_way: bool = False


class RankRun(FrozenModel):
    """One run on one rank; the memory is the device's peak, on CPUs the process's. `phases` are
    there where they were to be recorded.
    """

    latency_s: float
    end_to_end_s: float
    memory_bytes: int
    phases: tuple[Phase, ...] = ()
