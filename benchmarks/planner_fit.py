"""Fits the cost model's parameters to published latencies, for `planner_published --fit`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ditplan.backends.xdit import COSTS as XDIT
from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.planner.space.enumerate import evenly_staged
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.cost_constants import CostConstants, ModeConstants
from ditplan.profiles.mesh import placement_of

if TYPE_CHECKING:
    from benchmarks.planner_published import Row

PRIORS = {
    "8xa100-nvlink matmul": (0.62, 0.3),
    "8xa100-nvlink attention": (0.6, 0.3),
    "2x8xl40-pcie-eth100 matmul": (0.8, 0.2),
    "2x8xl40-pcie-eth100 attention": (0.75, 0.2),
    "8xl20-pcie matmul": (0.8, 0.2),
    "8xl20-pcie attention": (0.7, 0.2),
    "4xa100-pcie matmul": (0.55, 0.3),
    "4xa100-pcie attention": (0.5, 0.3),
    "8xh100-nvlink matmul": (0.6, 0.3),
    "8xh100-nvlink attention": (0.4, 0.3),
    "pcie": (20e9, 0.3),
    "memory": (18e9, 0.3),
    "socket": (30e9, 0.4),
    "ethernet": (1.5e9, 0.4),
    "crossing_exponent": (0.7, 0.3),
    "operation_launches": (3.2, 0.5),
    "compiled_share_of_launches": (0.45, 0.4),
    "exchange_launches": (40.0, 0.5),
    "ring_step_launches": (18.0, 0.5),
    "exchange_start_s": (150e-6, 1.0),
}
"""What each parameter should be from data sheets and other measurements, and by how much its
logarithm may be off."""

ROW_SPREAD = 0.1
"""How far a row is expected to be from a right model: figures are read to 3%, repeats differ by
more."""


def cluster_with(name: str, values: dict[str, float]) -> ClusterProfile:
    """A recorded cluster with other shares of the peak and other link rates."""
    known = find_cluster(name)
    shares = {
        f"{what}_share": min(1.0, values[f"{name} {what}"]) for what in ("matmul", "attention")
    }
    hosts = tuple(
        host.model_copy(
            update={"devices": tuple(one.model_copy(update=shares) for one in host.devices)}
        )
        for host in known.hosts
    )
    links = tuple(
        link.model_copy(update={"bytes_per_s": values.get(link.kind, link.bytes_per_s)})
        for link in known.links
    )
    return known.model_copy(update={"hosts": hosts, "links": links})


def constants_with(values: dict[str, float]) -> CostConstants:
    """xDiT's constants with other values."""
    eager, compiled = XDIT.modes["eager"], XDIT.modes["compile"]
    launches, exchange = values["operation_launches"], values["exchange_launches"]
    ring = values["ring_step_launches"]
    share = values["compiled_share_of_launches"]
    return replace(
        XDIT,
        crossing_exponent=values["crossing_exponent"],
        exchange_start_s=values["exchange_start_s"],
        modes={
            "eager": ModeConstants(
                launches, exchange, ring, eager.gather_launches, eager.elementwise_passes
            ),
            "compile": ModeConstants(
                launches * share,
                exchange / 2,
                ring,
                compiled.gather_launches,
                compiled.elementwise_passes,
            ),
        },
    )


def predictions(rows: Sequence["Row"], values: dict[str, float]) -> list[float]:
    """Seconds of each row with these parameters."""
    constants = constants_with(values)
    topologies = {
        name: Topology(cluster_with(name, values), constants)
        for name in {row.cluster for row in rows}
    }
    found = []
    for row in rows:
        spec, mesh = find_model(row.model), row.mesh
        assert mesh is not None
        model = CostModel(topologies[row.cluster], spec, constants=constants)
        part = evenly_staged(mesh, spec, mesh.pipefusion, row.warmup or 1)
        candidate = Configuration(mesh, placement_of(mesh), row.mode, pipefusion=part)
        prediction = model.price(candidate, row.workload)
        found.append(prediction.end_to_end_s if row.whole_call else prediction.latency_s)
    return found


def show_fit(rows: Sequence["Row"]) -> None:
    """Prints each parameter before and after the fit to these rows.

    Robust least squares in logarithms, each parameter held near what it should be.
    """
    names = list(PRIORS)
    start = np.log([PRIORS[name][0] for name in names])
    spread = np.array([PRIORS[name][1] for name in names])
    published = np.log([row.latency_s for row in rows])

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        values = dict(zip(names, map(float, np.exp(x)), strict=True))
        errors = (np.log(predictions(rows, values)) - published) / ROW_SPREAD
        return np.concatenate([errors, (x - start) / spread])

    found = least_squares(residuals, start, loss="soft_l1", max_nfev=25).x
    print(f"fitted to {len(rows)} rows:")
    for name, before, after in zip(names, np.exp(start), np.exp(found), strict=True):
        print(f"{name:<32} {before:10.4g} -> {after:10.4g}")
