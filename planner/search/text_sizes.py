"""To which sizes a plan rounds texts up."""

from collections.abc import Mapping

from ditplan.planner.cost_model import CostModel
from ditplan.planner.network.topology import Topology
from ditplan.profiles.backends import LoadedBackend
from ditplan.profiles.cluster import ClusterProfile
from ditplan.profiles.configuration import Configuration
from ditplan.profiles.family import family_of
from ditplan.profiles.model import ModelSpec
from ditplan.profiles.text_sizes import choose_sizes
from ditplan.profiles.workload import Workload


def text_sizes_of(
    configuration: Configuration,
    spec: ModelSpec,
    workload: Workload,
    cluster: ClusterProfile,
    backend: LoadedBackend,
    lengths: Mapping[int, float],
) -> tuple[int, ...]:
    """The sizes for a configuration; none where the model's texts are all of one length, or
    nothing is compiled or captured for it.

    `lengths` says how often texts of so many tokens come; empty, all up to the workload's come
    alike often. Only how seconds grow with the text counts, so they are computed.
    """
    if not family_of(spec.transformer_class).rounds_text or configuration.mode == "eager":
        return ()
    model = CostModel(Topology(cluster), spec, None, constants=backend.costs)

    def seconds(tokens: int) -> float:
        longer = workload.model_copy(update={"text_tokens": tokens})
        return model.price(configuration, longer).latency_s

    come = lengths or dict.fromkeys(range(1, workload.text_tokens + 1), 1.0)
    return choose_sizes(come, seconds)
