"""When GPUs push what they exchange into each other's memory: planner and runtime agree on it."""

from ditplan.profiles.cluster import LinkKind


def can_push(hosts: int, kind: LinkKind | None) -> bool:
    """Whether GPUs on so many hosts, joined by such links or by unknown ones, write to each other's
    memory. Over all but NVLink collectives are left to it: there the link, not the packing, takes
    the time.

    >>> can_push(hosts=1, kind="nvlink"), can_push(hosts=2, kind="nvlink")
    (True, False)
    """
    return hosts == 1 and kind == "nvlink"
