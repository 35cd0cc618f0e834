"""The two-GPU benchmark's launcher and tables, with contestants that only echo."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import jobs, two_gpu
from benchmarks.interleaved import Limits, Match, Row, Run, pack
from benchmarks.processes import Contestant, Variant
from benchmarks.standings import failures, standings, verdicts

EAGER = Variant("one", "eager", "auto")
COMPILED = Variant("one", "compile", "auto")
ULYSSES = Variant("ulysses2", "eager", "auto")

# What a contestant that hangs is waited for, and what others, however busy the machine is.
HANG_S, LONG_S = 5.0, 600.0

ECHO = """
import json, os, sys, time
name, diary, behaviour = sys.argv[1:4]
replies = os.fdopen(int(sys.argv[-1]), "w")
def say(what):
    print(json.dumps(what), file=replies, flush=True)
print("a library prints")
if behaviour == "dies early":
    raise ModuleNotFoundError("No module named 'av'")
say({"software": {"echo": "1"}})
for number in range(int(sys.argv[4])):
    say({"failed": "RuntimeError: can't"} if behaviour == "half" and number else {})
for line in sys.stdin:
    rank = os.environ["RANK"]
    if rank == "0":
        print(f"{name}{line.strip()}", file=open(diary, "a"))
    if behaviour == "hangs":
        time.sleep(3600)
    if behaviour == "dies":
        sys.exit("out of luck")
    if behaviour == "one rank dies" and rank == "1":
        sys.exit("rank out of luck")
    if behaviour == "one rank dies":
        time.sleep(3600)
    took_part = rank == "0" or behaviour == "both"
    say({"seconds": 0.5 if took_part else None, "clock_mhz": 1900 - int(rank),
         "memory_bytes": 7 + int(rank), "recompiled": 0, "rms": 1.0} if took_part
        else {"seconds": None})
"""

Echo = Callable[..., Contestant]


@pytest.fixture
def echo(tmp_path: Path) -> Echo:
    (tmp_path / "echo.py").write_text(ECHO)

    def made(
        name: str, behaviour: str = "", variants: tuple[Variant, ...] = (EAGER,), ranks: int = 1
    ) -> Contestant:
        script, diary = str(tmp_path / "echo.py"), str(tmp_path / "diary")
        count = str(len(variants))
        command = (sys.executable, "-S", script, name, diary, behaviour, count)
        return Contestant(name, command, ranks, variants)

    return made


def played(
    groups: list[list[Contestant]],
    reference: Contestant | None,
    folder: Path,
    *,
    rounds: int = 2,
    run_s: float = LONG_S,
    budget_s: float = 10 * LONG_S,
) -> Match:
    limits = Limits(LONG_S, run_s, time.monotonic() + budget_s)
    match = Match(reference, folder, limits, lambda line: None, lambda: None)
    match.play(groups, rounds)
    return match


def diary(folder: Path) -> str:
    return " ".join((folder / "diary").read_text().split())


def test_all_variants_run_once_a_round_in_alternating_order(tmp_path: Path, echo: Echo) -> None:
    ours = echo("ours", variants=(EAGER, COMPILED))
    match = played([[echo("a")], [echo("b")]], ours, tmp_path)
    assert diary(tmp_path) == "ours0 ours1 a0 a0 ours1 ours0 ours0 ours1 b0 b0 ours1 ours0"
    assert [(row.contestant, len(row.runs)) for row in match.rows] == [
        ("ours", 4),
        ("ours", 4),
        ("a", 2),
        ("b", 2),
    ]
    assert {run.group for run in match.rows[3].runs} == {1}
    assert match.software == {"echo": "1"}


def test_ranks_of_a_contestant_make_one_run(tmp_path: Path, echo: Echo) -> None:
    contestant = echo("a", "both", (ULYSSES,), ranks=2)
    (row,) = played([[contestant]], None, tmp_path, rounds=1).rows
    assert row.runs == [Run(0, 0, 0.5, 1899, 8, 0, 1.0)]


def test_a_rank_without_a_part_in_the_run_is_left_out(tmp_path: Path, echo: Echo) -> None:
    (row,) = played([[echo("a", ranks=2)]], None, tmp_path, rounds=1).rows
    assert row.runs == [Run(0, 0, 0.5, 1900, 7, 0, 1.0)]


@pytest.mark.parametrize(
    ("behaviour", "ranks", "reason"),
    [
        ("dies early", 1, "rank 0 ended with 1: ModuleNotFoundError: No module named 'av'"),
        ("dies", 1, "rank 0 ended with 1: out of luck"),
        ("one rank dies", 2, "rank 1 ended with 1: rank out of luck"),
        ("hangs", 1, "hung: no answer in 5 s while running one, eager"),
    ],
)
def test_a_contestant_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, echo: Echo, behaviour: str, ranks: int, reason: str
) -> None:
    group = [echo("bad", behaviour, ranks=ranks), echo("good")]
    run_s = HANG_S if behaviour == "hangs" else LONG_S
    bad, good = played([group], None, tmp_path, run_s=run_s).rows
    assert (bad.failed, bad.runs) == (reason, [])
    assert (good.failed, len(good.runs)) == (None, 2)


def test_a_variant_that_cannot_run_leaves_the_contestants_others(
    tmp_path: Path, echo: Echo
) -> None:
    rows = played([[echo("a", "half", (EAGER, COMPILED))]], None, tmp_path).rows
    assert [(row.failed, len(row.runs)) for row in rows] == [(None, 2), ("RuntimeError: can't", 0)]


def test_no_process_outlives_the_match(tmp_path: Path, echo: Echo) -> None:
    played([[echo("a", "hangs"), echo("b")]], None, tmp_path, rounds=1, run_s=0.3)
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(tmp_path / "echo.py") not in found.stdout


def test_nothing_starts_after_the_budget(tmp_path: Path, echo: Echo) -> None:
    (row,) = played([[echo("a")]], None, tmp_path, budget_s=0.0).rows
    assert (row.failed, row.runs) == ("not started: the time was used up", [])


def test_groups_fit_beside_the_reference() -> None:
    one, two, three = (Contestant(name, (), 1, (EAGER,), memory_bytes=4) for name in "abc")
    assert pack([one, two, three], 3, 11) == [[one, two], [three]]
    assert pack([one, two], 3, 5) == [[one], [two]]
    assert pack([], 3, 5) == [[]]


def row(contestant: str, variant: Variant, seconds: list[float], group: int = 0) -> Row:
    runs = [Run(group, n, one, 1980, 2**30, 0, None) for n, one in enumerate(seconds)]
    return Row(contestant, variant, runs)


def test_ratios_are_of_medians_in_the_same_group() -> None:
    ours, ours_two = row("ours", EAGER, [4.0, 2.0, 3.0]), row("ours", ULYSSES, [2.0])
    ours.runs += row("ours", EAGER, [6.0], group=1).runs
    near, far = row("near", EAGER, [3.3]), row("far", COMPILED, [9.0], group=1)
    failed = Row("xdit", ULYSSES, [], "hung")
    found = standings([ours, ours_two, near, far, failed, row("two", ULYSSES, [2.5])])
    assert [one.median_s for one in found] == [3.5, 2.0, 3.3, 9.0, None, 2.5]
    assert found[1].speed_up == 1.5
    assert found[2].to_ours == found[2].to_same == pytest.approx(1.1)
    assert found[3].to_ours == 1.5
    assert found[3].speed_up == pytest.approx(2 / 3)
    assert found[3].to_same is None
    assert found[5].to_ours == 1.25
    assert [verdict.partition(" (")[0] for verdict in verdicts(found)] == [
        "1 GPU: the nearest peer is near",
        "2 GPUs: the nearest peer is two",
        "one, eager: the nearest peer is near",
        "ulysses2, eager: the nearest peer is two",
    ]


def test_a_reason_is_told_once_for_all_variants_of_a_contestant() -> None:
    rows = [Row("a", EAGER, [], "hung"), Row("a", COMPILED, [], "hung"), Row("b", EAGER)]
    assert list(failures(rows)) == [
        "a (eager with attention auto, compile with attention auto) failed: hung"
    ]


def test_results_are_written_when_the_benchmark_is_told_to_stop(tmp_path: Path, echo: Echo) -> None:
    out = tmp_path / "results.json"
    script = f"""
from pathlib import Path
from benchmarks import jobs, two_gpu
from benchmarks.processes import Contestant, Variant
variants = (Variant("one", "eager", "auto"),)
quick = Contestant("ours", {echo("ours").command!r}, 1, variants)
slow = Contestant("slow", {echo("slow", "hangs").command!r}, 1, variants)
jobs.reference = lambda *asked: quick
jobs.peers = lambda *asked: [slow]
two_gpu.gpus = lambda: [{{"name": "G", "memory.total": "1000"}}]
two_gpu.main(["--pixels", "64", "--out", {str(out)!r}])
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + LONG_S
    while "slow0" not in (diary(tmp_path) if (tmp_path / "diary").exists() else ""):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 128 + signal.SIGTERM
    (case,) = json.loads(out.read_text())["cases"]
    assert [(one["contestant"], len(one["runs"])) for one in case["rows"]] == [
        ("ours", 1),
        ("slow", 0),
    ]
    assert "0.5000" in printed


def test_a_machine_without_gpus_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(two_gpu, "gpus", list)
    assert two_gpu.main(["--model", "sd3"]) == 2
    assert capsys.readouterr().err == "two_gpu: this needs 2 NVIDIA GPUs, nvidia-smi lists 0\n"


def test_list_names_every_variant_without_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert two_gpu.main(["--list", "--pixels", "1024", "--meshes", "one", "cfg2"]) == 0
    listed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "ours: cfg2, compile+graph, attention cudnn, about 9 GiB of each GPU" in listed
    assert "diffusers-one-cudnn: one, compile, attention cudnn, about 9 GiB of each GPU" in listed
    assert "xdit-cfg2-default: cfg2, eager, attention default, about 9 GiB of each GPU" in listed
    assert not [line for line in listed if "ulysses" in line]


def test_a_job_survives_its_command_line() -> None:
    job = jobs.Job("diffusers", "sd3", 1024, 20, (EAGER, ULYSSES))
    assert jobs.Job.from_json(job.to_json()) == job
    assert job.workload.passes == 2
