"""PipeFusion's loop as tasks on stages and links, in the order of the runtime."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ditplan.planner.network.tables import Group
from ditplan.planner.network.topology import Topology
from ditplan.planner.network.traffic import messages
from ditplan.planner.pipefusion.stage_times import LoopTimes
from ditplan.planner.simulation.simulator import Row, Span, simulate
from ditplan.planner.simulation.timeline import (
    SHOWN_STEPS,
    Listing,
    Timeline,
    TrackRows,
    link_classes,
)
from ditplan.profiles.folded_schedule import most_underway

LISTED_WARMUP = 10
"""With more warm-up steps the first ones are shown alone: each begins when all stages have ended
the one before, so all take equally long."""

LISTED_STEPS = 128
"""So many steps with patches are simulated; what the second half of them takes, later ones do."""


def staged_timeline(
    topology: Topology, lines: Sequence[Group], passes: Sequence[Group], times: LoopTimes
) -> Timeline:
    """Warm-up steps on the whole sequence, then patches through the stages: simulated until steps
    are alike, and counted from there.

    `lines` are the groups of ranks along the stages, `passes` those that exchange a prediction's
    samples. The links from a stage to the next are one row, since transfers over others don't wait
    for them; how much they slow each other down is in their durations.
    """
    count = len(lines[0])
    stages = [Row("ranks", f"stage {stage}") for stage in range(count)]
    hops = [[(line[i], line[(i + 1) % count]) for line in lines] for i in range(count)]
    along = [pair for hop in hops for pair in hop]
    between = [(a, b) for group in passes for a, b in messages("all_gather", group)]
    loop = partial(
        _Loop,
        stages=stages,
        hops=[
            _links(topology, f"stage {i} to {(i + 1) % count}", hop) for i, hop in enumerate(hops)
        ],
        back=[
            _links(topology, f"stage {i + 1} to {i}", [(b, a) for a, b in hop])
            for i, hop in enumerate(hops[:-1])
        ],
        told=_links(topology, "to all stages", along),
        passes=_links(topology, "passes", between),
    )
    # what is listed must not grow with the steps
    warmup, patched = min(times.warmup_steps, LISTED_WARMUP), min(times.steps, LISTED_STEPS)
    listing = loop(replace(times, warmup_steps=warmup, steps=patched)).listed()
    spans = simulate(listing.tasks)
    total_s = _end_s(spans)
    if times.steps > patched:
        fewer = loop(replace(times, warmup_steps=warmup, steps=patched // 2)).listed()
        step_s = (total_s - _end_s(simulate(fewer.tasks))) / (patched - patched // 2)
        total_s += (times.steps - patched) * step_s
    shown = warmup + SHOWN_STEPS
    if times.warmup_steps > warmup:
        first, second = (
            max(span.end_s for span, of in zip(spans, listing.step_of, strict=True) if of == step)
            for step in (0, 1)
        )
        total_s += (times.warmup_steps - warmup) * (second - first)
        shown = SHOWN_STEPS
    steps = times.warmup_steps + times.steps
    return Timeline(
        tasks=tuple(listing.tasks),
        step_of=tuple(listing.step_of),
        spans=tuple(spans),
        ranks={row: tuple(sorted(line[i] for line in lines)) for i, row in enumerate(stages)},
        steps=steps,
        shown_steps=min(steps, shown),
        total_s=total_s,
    )


def _end_s(spans: Sequence[Span]) -> float:
    return max(span.end_s for span in spans)


class _Loop:
    """Lists the loop's tasks."""

    def __init__(
        self,
        times: LoopTimes,
        *,
        stages: Sequence[Row],
        hops: Sequence[Row],
        back: Sequence[Row],
        told: Row,
        passes: Row,
    ) -> None:
        self.listing = Listing()
        self._times, self._stages, self._hops, self._hops_back = times, stages, hops, back
        self._told, self._passes = told, passes
        self._first = stages[0]

    def listed(self) -> Listing:
        """The tasks of the whole loop."""
        self.list_warmup()
        if self._times.patched.back_s:
            self.list_folded_patches()
        else:
            self.list_patches()
        return self.listing

    def list_warmup(self) -> None:
        """Each step runs through all stages, folded back too; its prediction is told to all, then
        the scheduler of each patch and of the witness steps.
        """
        times, add = self._times, self.listing.add
        for self.listing.step in range(times.warmup_steps):
            came: tuple[int, ...] = ()
            for stage, (row, seconds) in enumerate(zip(self._stages, times.warm_s, strict=True)):
                done = add("whole sequence", "compute", (row,), seconds, came)
                came = (done,)
                if row != self._stages[-1]:
                    came = (self._hop("whole sequence", stage, times.warm_hop_s[stage], done),)
            for stage in range(len(times.warm_back_s) - 1, -1, -1):
                came = (self._hop_back("whole sequence", stage, times.warm_hop_s[stage], *came),)
                row, seconds = self._stages[stage], times.warm_back_s[stage]
                came = (add("whole sequence, back", "compute", (row,), seconds, came),)
            add("prediction to all", "sends", (*self._stages, self._told), times.told_s)
            if times.warm_passes_s:
                rows = (*self._stages, self._passes)
                add("passes of the whole", "cfg", rows, times.warm_passes_s)
            add("scheduler of all patches", "scheduler", (self._first,), times.warm_scheduler_s)
        if times.setup_s:
            add("calls of the patches", "scheduler", (self._first,), times.setup_s)

    def list_patches(self) -> None:
        """Patches follow each other through the stages; the first one makes a patch's scheduler
        step when its prediction is back. At the end all are told the latents.
        """
        times, add = self._times, self.listing.add
        returned: list[int] = []
        for step in range(times.steps):
            self.listing.step = times.warmup_steps + step
            back: list[int] = []
            for patch in range(len(times.patched.between_s)):
                if step:
                    self._between(patch, returned[patch])
                came: tuple[int, ...] = ()
                for stage, row in enumerate(self._stages):
                    seconds = times.patched.stage_s[stage][patch]
                    done = add(f"patch {patch}", "compute", (row,), seconds, came)
                    hop_s = times.patched.hop_s[stage][patch]
                    came = (self._hop(f"patch {patch}", stage, hop_s, done),)
                back += came
            returned = back
        self._end(returned)

    def list_folded_patches(self) -> None:
        """The same there and back: a stage takes what comes back when as many patches are behind it
        as there are stages from it on.
        """
        times, patched = self._times, self._times.patched
        stages, patches = len(self._stages), len(patched.between_s)
        last, total = stages - 1, times.steps * patches
        most = [most_underway(stage, stages, patches) for stage in range(stages)]
        # what patches on their way back come by: their transfers to each stage, and at the end
        sent = [[0] * patches for _ in range(last)]
        ended = [0] * patches
        for number in range(total + most[0] - 1):
            if number < total:
                patch = number % patches
                self.listing.step = times.warmup_steps + number // patches
                if number >= patches:
                    self._between(patch, ended[patch])
                done = self._go_there(patch)
                hop_s = patched.hop_s[last - 1][patch]
                sent[last - 1][patch] = self._hop_back(f"patch {patch}", last - 1, hop_s, done)
            for stage in range(last - 1, -1, -1):
                coming = number - most[stage] + 1
                if not 0 <= coming < total:
                    continue
                patch = coming % patches
                self.listing.step = times.warmup_steps + coming // patches
                rows, came = (self._stages[stage],), (sent[stage][patch],)
                name, seconds = f"patch {patch}, back", patched.back_s[stage][patch]
                done = self.listing.add(name, "compute", rows, seconds, came)
                if stage:
                    hop_s = patched.hop_s[stage - 1][patch]
                    sent[stage - 1][patch] = self._hop_back(
                        f"patch {patch}", stage - 1, hop_s, done
                    )
                else:
                    ended[patch] = done
        self._end(ended)

    def _go_there(self, patch: int) -> int:
        """A patch through all stages; its place on the last one in the list."""
        patched = self._times.patched
        came: tuple[int, ...] = ()
        for stage, row in enumerate(self._stages):
            seconds = patched.stage_s[stage][patch]
            done = self.listing.add(f"patch {patch}", "compute", (row,), seconds, came)
            if row != self._stages[-1]:
                came = (self._hop(f"patch {patch}", stage, patched.hop_s[stage][patch], done),)
        return done

    def _end(self, returned: Sequence[int]) -> None:
        for patch, came_back in enumerate(returned):
            self._between(patch, came_back)
        rows = (*self._stages, self._told)
        self.listing.add("latents to all", "sends", rows, self._times.agreement_s)

    def _hop(self, what: str, stage: int, seconds: float, after: int) -> int:
        """A transfer to the next stage; its place in the list."""
        rows: TrackRows = (self._hops[stage],)
        if self._times.sending_computes:
            rows = (self._stages[stage], *rows)
        return self.listing.add(what, "sends", rows, seconds, (after,))

    def _hop_back(self, what: str, stage: int, seconds: float, after: int) -> int:
        """A transfer to a stage from the next one."""
        rows: TrackRows = (self._hops_back[stage],)
        if self._times.sending_computes:
            rows = (self._stages[stage + 1], *rows)
        return self.listing.add(what, "sends", rows, seconds, (after,))

    def _between(self, patch: int, returned: int) -> None:
        """The first stage takes a patch's prediction in."""
        passes_s = self._times.patched.between_s[patch] - self._times.scheduler_s
        after = (returned,)
        if passes_s > 0:
            rows = (self._first, self._passes)
            after = (self.listing.add(f"passes of patch {patch}", "cfg", rows, passes_s, after),)
        name = f"scheduler of patch {patch}"
        self.listing.add(name, "scheduler", (self._first,), self._times.scheduler_s, after)


def _links(topology: Topology, name: str, pairs: Sequence[tuple[int, int]]) -> Row:
    """A row for the links between pairs of ranks, with their classes."""
    classes = ", ".join(link_classes(topology, pairs))
    return Row("links", f"{name} ({classes})" if classes else name)
