"""Whether a plan may run here: the ranks, devices and links must be those it was made for."""

from typing import Any

import torch.distributed as dist

from ditplan.profiles.plan import ExecutionPlan
from ditplan.runtime.groups import RankContext
from ditplan.runtime.ranks.devices import common_link_kind, device_name, link_kind
from ditplan.runtime.ranks.pool import environment


def require_fit(plan: ExecutionPlan, context: RankContext) -> None:
    """Refuses a plan that was made for other ranks, devices or links; every rank calls it.

    Raises:
        InputError: the same on every rank; says which of them differs and what to do.
    """
    if context.world_size < plan.mesh.size:
        plan.require_ranks(context.world_size)
    mine = (device_name(context), link_kind(context))
    found: list[Any] = [mine]
    if context.world_size > 1:
        found = [None] * context.world_size
        dist.all_gather_object(found, mine)
    plan.require_devices(tuple(name for name, _ in found))
    plan.require_links(common_link_kind([kind for _, kind in found], environment()))
