"""A report as one file of HTML: headings, figures, and a table beside each of them."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from ditplan.explaining.explanation import Explanation
from ditplan.reporting.figure import Figure, LeftOut, Table
from ditplan.reporting.plotting import checked_json, compressed_script

WIDE = ("parts", "timeline", "recorded", "crossovers")
"""Figures that take the whole width of a large screen."""


def page(found: Explanation, shown: Sequence[Figure | LeftOut]) -> str:
    """The whole file. It needs no network, and says the same without scripts, in tables."""
    figures = [one for one in shown if isinstance(one, Figure)]
    title = f"{found.subject.plan.model.name} on {found.subject.task.cluster.name}"
    drawn = {
        one.key: {"height": one.height, "figure": json.loads(checked_json(one))} for one in figures
    }
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)} - ditplan</title>
<style>
{_shipped("page.css")}</style>
</head>
<body>
<a class="skip" href="#report">Skip to the figures</a>
<header>
<h1>{escape(_sentence(found.verdict))}</h1>
<p class="of">{escape(_subtitle(found))}</p>
{_facts(found)}
<nav aria-label="Figures"><ul>
{"".join(_jump(one) for one in figures)}</ul></nav>
</header>
<main id="report">
{"".join(_section(one) for one in figures)}{_left_out(shown)}</main>
<footer>
{"".join(f"<p>{escape(_sentence(note))}</p>" for note in found.notes)}
<p>Made by ditplan from {escape(str(found.subject.path))}.</p>
</footer>
<script type="application/json" id="figures">{_safe_json(drawn)}</script>
<script type="text/plain" id="plotly">{compressed_script()}</script>
<script>
{_shipped("page.js")}</script>
</body>
</html>
"""


def _shipped(name: str) -> str:
    return files("ditplan.reporting").joinpath(name).read_text(encoding="utf-8")


def _safe_json(value: object) -> str:
    """JSON that can't end the script that it stands in."""
    return (
        json.dumps(value, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:].rstrip(".") + "."


def _subtitle(found: Explanation) -> str:
    plan = found.subject.plan
    return (
        f"{plan.configuration}. {plan.model.name}: {plan.workload}, on "
        f"{found.subject.task.cluster.name}."
    )


def _facts(found: Explanation) -> str:
    """The few numbers that matter most."""
    plan, own = found.subject.plan, found.subject.own.prediction
    low_s, high_s = own.interval_s
    facts = [
        ("plan", str(plan.mesh)),
        ("GPUs", str(plan.mesh.size)),
        ("predicted", f"{own.latency_s:.4g} s"),
        ("90% interval", f"{low_s:.3g} to {high_s:.3g} s"),
    ]
    if plan.measurement is not None:
        facts.append(("measured", f"{plan.measurement.latency_s:.4g} s"))
    facts += [
        ("memory a GPU", f"{own.memory_bytes / 1e9:.1f} GB"),
        ("a call of N steps", f"{found.fixed_s:.3g} + {found.step_s:.3g} N s"),
        ("bound by", f"{_short_resource(found)}, {100 * found.binding.share:.0f}%"),
    ]
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in facts
    )
    return f'<dl class="facts">\n{shown}</dl>'


def _short_resource(found: Explanation) -> str:
    """What the plan is bound by, without the device's name and explanations."""
    return found.binding.resource.partition(",")[0].partition(" on ")[0]


def _jump(one: Figure) -> str:
    return f'<li><a href="#{one.key}">{escape(one.title)}</a></li>\n'


def _section(one: Figure) -> str:
    wide = ' class="wide"' if one.key in WIDE else ""
    code = "".join(
        f"<p>{escape(what)}</p>\n<pre>{escape(command)}</pre>\n" for what, command in one.code
    )
    checks = (
        f"<details><summary>Commands that check it</summary>\n{code}</details>\n" if code else ""
    )
    return f"""<section id="{one.key}" aria-labelledby="title-{one.key}"{wide}>
<h2 id="title-{one.key}">{escape(one.title)}</h2>
<p>{escape(one.text)}</p>
<div class="figure" id="figure-{one.key}" role="img" aria-label="{escape(one.label)}"
 style="min-height: {one.height}px"></div>
<details><summary>{escape(one.title)} as a table</summary>
{_table(one.table, one.title)}</details>
{checks}</section>
"""


def _table(table: Table, title: str) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )


def _left_out(shown: Sequence[Figure | LeftOut]) -> str:
    """What isn't shown, and why."""
    left = [one for one in shown if isinstance(one, LeftOut)]
    if not left:
        return ""
    rows = "".join(f"<p><b>{escape(one.title)}.</b> {escape(one.why)}</p>\n" for one in left)
    return (
        '<section class="wide" aria-labelledby="title-left-out">\n'
        f'<h2 id="title-left-out">Not shown</h2>\n{rows}</section>\n'
    )
