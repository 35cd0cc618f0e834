"""A report is one file that a browser without a network shows: whole, at any width and scheme."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ditplan import cli
from ditplan.explaining.explanation import Explanation, explain
from ditplan.planner.search.policy import MeasurementPolicy, RunResult
from ditplan.planner.search.search import search
from ditplan.planner.simulation.chrome_trace import chrome_trace
from ditplan.planner.task import TuneRequest
from ditplan.profiles.catalog import find_cluster, find_model
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan
from ditplan.profiles.rank_run import Phase
from ditplan.profiles.trace_events import recorded_trace
from ditplan.reporting.figure import Figure, LeftOut
from ditplan.reporting.report import figures_of, require_report, save_report
from ditplan.reporting.timeline_figures import TraceRows, recorded_rows

MOST_BYTES = 5_000_000
CASES = {"exact": ("sd3", "8xa100-nvlink"), "safe": ("flux-dev", "4xa100-pcie")}
WIDTHS = (360, 1440)


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Explanation]:
    """An exact plan whose first ones were run, and one on paper with stages."""
    folder, found = tmp_path_factory.mktemp("plans"), {}
    for quality, (model, cluster) in CASES.items():
        spec, path = find_model(model), folder / f"{quality}.json"
        task = TuneRequest(spec, known=lambda workload: None, quality=quality).task(
            spec.defaults, find_cluster(cluster)
        )
        study = path.with_suffix(".study")
        study.mkdir()
        trials = None
        if quality == "exact":
            trials = MeasurementPolicy(took, top=3, rounds=2, journal=study / "journal.log")
        search(task, trials).to_plan().save(path)
        found[quality] = explain(path)
    return found


def took(plan: ExecutionPlan) -> RunResult:
    """A machine that is a tenth slower than predicted."""
    assert plan.prediction is not None
    return RunResult(1.1 * plan.prediction.latency_s)


@pytest.fixture(scope="module")
def reports(
    explained: dict[str, Explanation], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Their reports; that with stages shows a trace, too: a run that took what was predicted."""
    folder = tmp_path_factory.mktemp("reports")
    saved = {}
    for name, found in explained.items():
        trace = None
        if name == "safe":
            trace = recorded(found, folder / "t.json")
        saved[name] = save_report(found, folder / f"{name}.html", trace)
    return saved


def recorded(found: Explanation, path: Path) -> TraceRows:
    """What `run --trace` would have written of ranks that do all as predicted."""
    plan = found.subject.plan
    timeline = found.subject.model.timeline(plan.configuration, plan.workload)
    spans = zip(timeline.tasks, timeline.step_of, timeline.spans, strict=True)
    phases = [
        Phase(
            rank=rank,
            step=step + 1,
            name=task.name,
            category=task.category,
            start_s=span.start_s,
            end_s=span.end_s,
        )
        for task, step, span in spans
        for row in task.rows
        for rank in timeline.ranks.get(row, ())
    ]
    path.write_text(recorded_trace(plan.configuration, phases, timeline.total_s, "a test"))
    return recorded_rows(path, plan)


def simulated_trace(found: Explanation, path: Path) -> None:
    plan = found.subject.plan
    timeline = found.subject.model.timeline(plan.configuration, plan.workload)
    path.write_text(chrome_trace(timeline, plan.configuration, "recorded"))


class Page(HTMLParser):
    """What a page is made of: each start of an element, and the text of each heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("name", CASES)
def test_a_report_is_one_small_file_that_fetches_nothing(
    reports: dict[str, Path], name: str
) -> None:
    text = reports[name].read_text()
    assert len(text.encode()) < MOST_BYTES
    page = Page(text)
    for tag, attributes in page.elements:
        for attribute in ("src", "href", "srcset", "action"):
            value = attributes.get(attribute)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"@import|url\(", text)


@pytest.mark.parametrize("name", CASES)
def test_what_eyes_see_in_a_figure_is_said_in_words_and_in_a_table(
    reports: dict[str, Path], name: str
) -> None:
    page = Page(reports[name].read_text())
    figures = [one for one in page.all("div") if one.get("class") == "figure"]
    tables = page.all("table")
    assert len(figures) == len(tables) >= 7
    assert all(one["role"] == "img" and one["aria-label"] for one in figures)
    assert len(page.all("h1")) == 1
    named = {one["id"] for one in page.all("h2")}
    assert {one["aria-labelledby"] for one in page.all("section")} == named
    scrolled = [one for one in page.all("div") if one.get("class") == "scroll"]
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in scrolled)
    targets = {one["id"] for one in page.all("section") if one.get("id")}
    jumps = [str(one["href"]) for one in page.all("a")]
    assert {jump[1:] for jump in jumps} - {"report"} == targets


def test_figures_without_data_are_left_out_with_a_sentence(
    explained: dict[str, Explanation], reports: dict[str, Path]
) -> None:
    shown = {one.key: one for one in figures_of(explained["safe"])}
    left = {key: one for key, one in shown.items() if isinstance(one, LeftOut)}
    assert set(left) == {"recorded", "measured", "history", "quality"}
    text = reports["exact"].read_text()
    measured = {one.key for one in figures_of(explained["exact"]) if isinstance(one, Figure)}
    assert {"measured", "history"} <= measured
    for one in figures_of(explained["exact"]):
        if isinstance(one, LeftOut):
            assert one.why.endswith(".")
            assert escape(one.why) in text


def test_every_figure_has_points_and_rows(explained: dict[str, Explanation]) -> None:
    for found in explained.values():
        for one in figures_of(found):
            if isinstance(one, Figure):
                assert any(len(trace.get("x", trace.get("z", ()))) for trace in one.data)
                assert one.table.rows
                assert all(len(row) == len(one.table.headings) for row in one.table.rows)


def test_the_timeline_ends_where_its_steps_do(explained: dict[str, Explanation]) -> None:
    found = explained["exact"]
    (shown,) = (one for one in figures_of(found) if one.key == "timeline")
    assert isinstance(shown, Figure)
    ends = [b + x for trace in shown.data for b, x in zip(trace["base"], trace["x"], strict=True)]
    step_s = found.subject.own.prediction.latency_s / found.subject.plan.workload.steps
    assert max(ends) / 1e3 == pytest.approx(step_s, rel=0.01)


def test_what_is_no_trace_is_refused(
    explained: dict[str, Explanation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = explained["exact"].subject.plan
    facts = json.dumps({"recorded": True, "plan": str(plan.configuration)})
    wrong = '{"traceEvents": [{"ph": "X", "tid": 1}], "otherData": ' + facts + "}"
    for text in ("{}", '{"traceEvents": []}', wrong, "[1]", "no"):
        Path("t.json").write_text(text)
        with pytest.raises(InputError, match=r"^t\.json: "):
            recorded_rows(Path("t.json"), plan)


def test_a_prediction_is_not_shown_as_what_was_recorded(
    explained: dict[str, Explanation], tmp_path: Path
) -> None:
    found, path = explained["exact"], tmp_path / "t.json"
    simulated_trace(found, path)
    with pytest.raises(InputError, match="doesn't say that it is of a run; record it again"):
        recorded_rows(path, found.subject.plan)


def test_a_run_of_another_plan_is_refused_before_anything_is_explained(
    explained: dict[str, Explanation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other, path = explained["safe"], tmp_path / "t.json"
    recorded(other, path)
    plan = explained["exact"].subject.path
    words = ["--plan", str(plan), "--report", str(tmp_path / "r.html"), "--trace", str(path)]
    monkeypatch.setattr(sys, "argv", ["ditplan", "explain", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"this is a run of {other.subject.plan.configuration}" in printed.err


def test_a_run_of_a_plan_on_other_ranks_than_the_first_is_its_own(
    explained: dict[str, Explanation], tmp_path: Path
) -> None:
    found, path = explained["exact"], tmp_path / "t.json"
    recorded(found, path)
    placed = found.subject.plan.configuration
    moved = replace(placed, placement=tuple(rank + 1 for rank in placed.placement))
    plan = found.subject.plan.model_copy(update={"configuration": moved, "locations": ()})
    assert str(moved) != str(placed)
    assert recorded_rows(path, plan).rows


def test_a_predicted_timeline_may_have_more_events_than_a_file(
    explained: dict[str, Explanation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditplan.profiles.files.MOST_OBJECTS", 10)
    (shown,) = (one for one in figures_of(explained["safe"]) if one.key == "timeline")
    assert isinstance(shown, Figure)


def test_names_in_a_plan_cannot_become_markup(
    explained: dict[str, Explanation], tmp_path: Path
) -> None:
    found = explained["exact"]
    cluster = found.subject.task.cluster.model_copy(update={"name": "</script><b>x"})
    task = replace(found.subject.task, cluster=cluster)
    text = save_report(
        replace(found, subject=replace(found.subject, task=task)), tmp_path / "r.html"
    ).read_text()
    assert "</script><b>x" not in text
    assert "&lt;/script&gt;&lt;b&gt;x" in text


def test_only_a_page_in_a_folder_is_written(tmp_path: Path) -> None:
    for wrong in ("r.pdf", "nowhere/r.html"):
        with pytest.raises(InputError):
            require_report(tmp_path / wrong)


def test_tune_writes_a_report_of_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["tune", "--model", "sd3", "--cluster", "2xh100-nvlink", "--report", "r.html"]
    monkeypatch.setattr(sys, "argv", ["ditplan", *words, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["report"] == "r.html"
    assert "cfg2" in (tmp_path / "r.html").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium: playwright's own, or the system's."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: `pip install -e '.[browser]'`"
    )
    with api.sync_playwright() as playwright:
        paths = (playwright.chromium.executable_path, shutil.which("chromium"))
        path = next((one for one in paths if one and Path(one).exists()), None)
        if path is None:
            pytest.skip("no Chromium: `playwright install chromium`, or the system's package")
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_a_browser_draws_every_figure_without_complaint(
    reports: dict[str, Path], browser: Any, name: str, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(reports[name].as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
    assert page.evaluate("document.documentElement.dataset.drawn") == scheme
    drawn = page.evaluate(DRAWN)
    assert said == []
    assert len(drawn) == reports[name].read_text().count('class="figure"') >= 7
    for figure in drawn:
        assert figure["marks"] > 0, figure
        assert 0 < figure["width"] <= width, figure
    # nothing has to be scrolled sideways
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, ground = page.evaluate(COLOURS)
    assert (luminance(ink) > luminance(ground)) == (scheme == "dark")
    context.close()


DRAWN = """[...document.querySelectorAll('.figure')].map((place) => ({
  id: place.id,
  width: place.querySelector('svg.main-svg')?.getBoundingClientRect().width ?? 0,
  marks: place.querySelectorAll('.point, .points path, .js-line, .hm image').length,
}))"""
COLOURS = """[getComputedStyle(document.querySelector('.figure text')).fill,
  getComputedStyle(document.body).backgroundColor]"""


def luminance(colour: str) -> float:
    """How bright a colour such as `rgb(1, 2, 3)` is."""
    return sum(float(number) for number in re.findall(r"[\d.]+", colour)[:3])
