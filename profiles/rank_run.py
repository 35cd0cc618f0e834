"""What a rank says of a run of a plan."""

from ditplan.profiles.record import FrozenModel


class RankRun(FrozenModel):
    """One run on one rank; the memory is the device's peak, on CPUs the process's."""

    latency_s: float
    end_to_end_s: float
    memory_bytes: int
