"""What several ranks measured of a model becomes one profile."""

from ditplan.profiles.model import TimePoint
from ditplan.runtime.profiling.slowest_points import slowest_of_ranks


def point(median_s: float, **changes: object) -> TimePoint:
    """A measured block."""
    usual = {"part": "block", "batch": 1, "image_tokens": 64, "text_tokens": 7, "key_tokens": 71}
    timing = {"median_s": median_s, "p95_s": median_s, "host_s": median_s / 3, "runs": 5}
    return TimePoint.model_validate(usual | timing | changes)


def test_of_a_point_that_all_ranks_measured_the_slowest_counts() -> None:
    assert slowest_of_ranks([[point(1.0)], [point(2.0)]]) == (point(2.0),)


def test_blocks_are_the_same_point_whatever_kernel_they_attended_by() -> None:
    ranks = [[point(1.0, kernel="flash")], [point(2.0, kernel="cudnn")]]
    assert slowest_of_ranks(ranks) == (point(2.0, kernel="cudnn"),)


def test_attentions_by_other_kernels_are_other_points() -> None:
    flash, cudnn = (point(1.0, part="attention", kernel=kernel) for kernel in ("flash", "cudnn"))
    slower = point(3.0, part="attention", kernel="cudnn")
    assert slowest_of_ranks([[flash, cudnn], [slower, flash]]) == (flash, slower)


def test_a_point_that_a_rank_lacks_is_left_out() -> None:
    graph = point(1.0, mode="graph", host_s=None)
    assert slowest_of_ranks([[point(1.0), graph], [point(1.0)]]) == (point(1.0),)
