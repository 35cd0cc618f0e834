"""What a case's runs say: medians, and ratios of what was measured in the same group."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.interleaved import Row
from benchmarks.processes import Variant

OURS = "ours"
LEGEND = (
    "speed-up: over our best on one GPU; / ours: seconds over those of our best on as many GPUs; "
    "/ same: over ours with the same mesh and mode"
)


@dataclass(frozen=True)
class Standing:
    """A row with its median and how that compares; None where there is nothing to compare with.

    `speed_up` is our best one-GPU median over this one, `to_ours` this median over our best on as
    many GPUs, `to_same` over ours with the same mesh and mode.
    """

    row: Row
    median_s: float | None
    speed_up: float | None
    to_ours: float | None
    to_same: float | None


def standings(rows: Sequence[Row]) -> list[Standing]:
    """One standing for each row, in order; only runs of the row's own groups are compared."""
    return [_standing(row, rows) for row in rows]


def _standing(row: Row, rows: Sequence[Row]) -> Standing:
    if not row.runs:
        return Standing(row, None, None, None, None)
    own = statistics.median(run.seconds for run in row.runs)
    groups = {run.group for run in row.runs}
    ours = {
        other.variant: median
        for other in rows
        if other.contestant == OURS and (median := _median(other, groups)) is not None
    }
    one_gpu = _least(ours[variant] for variant in ours if variant.gpus == 1)
    as_many = _least(ours[variant] for variant in ours if variant.gpus == row.variant.gpus)
    same = _least(ours[variant] for variant in ours if _alike(variant, row.variant))
    return Standing(
        row=row,
        median_s=own,
        speed_up=one_gpu / own if one_gpu else None,
        to_ours=own / as_many if as_many else None,
        to_same=own / same if same else None,
    )


def _median(row: Row, groups: set[int]) -> float | None:
    found = [run.seconds for run in row.runs if run.group in groups]
    return statistics.median(found) if found else None


def _least(medians: Iterable[float]) -> float | None:
    return min(medians, default=None)


def _alike(one: Variant, other: Variant) -> bool:
    return (one.mesh, one.mode) == (other.mesh, other.mode)


def verdicts(found: Sequence[Standing]) -> Iterator[str]:
    """The nearest peer for each number of GPUs, and for each mesh and mode that we have as well."""
    raced = [one for one in found if one.row.contestant != OURS and one.to_ours is not None]
    for gpus in (1, 2):
        group = [one for one in raced if one.row.variant.gpus == gpus]
        if group:
            best = min(group, key=lambda one: one.to_ours or 0.0)
            yield (
                f"{gpus} GPU{'s' * (gpus > 1)}: the nearest peer is {_called(best.row)}, which "
                f"needs {best.to_ours:.3f} times as long as our best"
            )
    pairs = {(one.row.variant.mesh, one.row.variant.mode): None for one in raced if one.to_same}
    for mesh, mode in pairs:
        variant = Variant(mesh, mode, "")
        group = [one for one in raced if one.to_same and _alike(one.row.variant, variant)]
        best = min(group, key=lambda one: one.to_same or 0.0)
        yield (
            f"{mesh}, {mode}: the nearest peer is {_called(best.row)}, which needs "
            f"{best.to_same:.3f} times as long as ours"
        )


def failures(rows: Sequence[Row]) -> Iterator[str]:
    """Why rows have no more runs, each reason of a contestant once."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.failed:
            how = f"{row.variant.mode} with attention {row.variant.attention}"
            found.setdefault((row.contestant, row.failed), []).append(how)
    for (contestant, reason), ways in found.items():
        yield f"{contestant} ({', '.join(ways)}) failed: {reason}"


def _called(row: Row) -> str:
    return f"{row.contestant} ({row.variant.mode}, attention {row.variant.attention})"


def table(title: str, found: Sequence[Standing]) -> Table:
    """One case for people."""
    made = Table(title=title, title_justify="left", caption=LEGEND, caption_justify="left")
    for name in ("contestant", "mesh", "mode", "attention"):
        made.add_column(name, no_wrap=True)
    for name in (
        "median s",
        "min s",
        "runs",
        "speed-up",
        "/ ours",
        "/ same",
        "SM MHz",
        "GiB",
        "recompiled",
    ):
        made.add_column(name, justify="right", no_wrap=True)
    for one in found:
        made.add_row(*_cells(one))
    return made


def _cells(one: Standing) -> list[str]:
    row = one.row
    cells = [row.contestant, row.variant.mesh, row.variant.mode, row.variant.attention]
    cells += ["failed" if row.failed and not row.runs else _number(one.median_s, 4)]
    cells += [_number(_least(run.seconds for run in row.runs), 4)]
    cells += [str(len(row.runs))]
    cells += [_number(ratio, 3) for ratio in (one.speed_up, one.to_ours, one.to_same)]
    clocks = [run.clock_mhz for run in row.runs if run.clock_mhz is not None]
    cells.append(f"{statistics.median(clocks):.0f}" if clocks else "-")
    memory = max((run.memory_bytes for run in row.runs), default=None)
    cells.append("-" if memory is None else f"{memory / 2**30:.1f}")
    cells.append(str(sum(run.recompiled for run in row.runs)) if row.runs else "-")
    return cells


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
