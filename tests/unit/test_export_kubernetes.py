"""Plans as Jobs and JobSets: what servers ask for beyond the schema."""

import json
from typing import Any

import pytest

from ditplan.exporting.export import export
from ditplan.exporting.kubernetes import why_refused, why_set_refused
from ditplan.profiles.mesh import Mesh
from ditplan.profiles.plan import ExecutionPlan
from tests.unit.test_export import located, planned


def job_of(plan: ExecutionPlan) -> dict[str, Any]:
    """The Job of an exported plan."""
    text = export(plan, "kubernetes", "plan.json").text
    documents = text.split("---\n")[1:]
    found: dict[str, Any] = json.loads(documents[1])
    return found


def test_a_job_has_what_servers_ask_for_beyond_the_schema() -> None:
    plan = located(planned(Mesh(ulysses=4)), ("a", 0), ("a", 1), ("b", 0), ("b", 1))
    job = job_of(plan)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert why_refused(job) is None
    pod = job["spec"]["template"]["spec"]
    assert (
        f"--master-addr={job['metadata']['name']}-0.{pod['subdomain']}"
        in pod["containers"][0]["command"]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completions": None}, "number of completions"),
        ({"completionMode": "Bogus"}, "completionMode Indexed"),
        ({"parallelism": 1}, "must equal completions"),
    ],
)
def test_a_job_that_its_schema_lets_through_is_refused(change: dict[str, Any], words: str) -> None:
    plan = located(planned(Mesh(ulysses=4)), ("a", 0), ("a", 1), ("b", 0), ("b", 1))
    job = job_of(plan)
    job["spec"] |= change
    assert words in str(why_refused(job))


def jobset_of(plan: ExecutionPlan) -> dict[str, Any]:
    """The JobSet of an exported plan."""
    text = export(plan, "jobset", "plan.json").text
    found: dict[str, Any] = json.loads(text.split("---\n")[1])
    return found


def test_pods_of_a_jobset_find_the_first_one_by_its_name() -> None:
    plan = located(planned(Mesh(ulysses=4)), ("a", 0), ("a", 1), ("b", 0), ("b", 1))
    jobset = jobset_of(plan)
    assert why_set_refused(jobset) is None
    spec, name = jobset["spec"], jobset["metadata"]["name"]
    (group,) = spec["replicatedJobs"]
    assert group["template"]["spec"]["completions"] == 2
    (container,) = group["template"]["spec"]["template"]["spec"]["containers"]
    head = f"{name}-{group['name']}-0-0.{spec['network']['subdomain']}"
    assert f"--master-addr={head}" in container["command"]
    assert spec["network"]["publishNotReadyAddresses"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completions": None}, "number of completions"),
        ({"parallelism": 1}, "must equal completions"),
        ({"completions": 10**12, "parallelism": 10**12}, "more than 63 characters"),
    ],
)
def test_a_jobset_of_jobs_that_servers_refuse_is_refused(
    change: dict[str, Any], words: str
) -> None:
    plan = located(planned(Mesh(ulysses=4)), ("a", 0), ("a", 1), ("b", 0), ("b", 1))
    jobset = jobset_of(plan)
    jobset["metadata"]["name"] = "x" * 45
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"] |= change
    assert words in str(why_set_refused(jobset))


@pytest.mark.parametrize("jobs", [[], ["a", "a"], ["A_b"]])
def test_groups_of_a_jobset_need_names(jobs: list[str]) -> None:
    jobset = jobset_of(planned(Mesh(ulysses=2)))
    (group,) = jobset["spec"]["replicatedJobs"]
    jobset["spec"]["replicatedJobs"] = [group | {"name": name} for name in jobs]
    assert why_set_refused(jobset) is not None


def test_a_pod_that_is_started_anew_for_ever_is_refused() -> None:
    job = job_of(planned(Mesh(ulysses=2)))
    job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert "restartPolicy" in str(why_refused(job))
