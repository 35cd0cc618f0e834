"""A plan as a Job or a JobSet of Kubernetes: a pod a host, which find each other by a Service
without an address.
"""

import json
from collections.abc import Iterable
from typing import Any

from ditplan.exporting.exported import commented, digest_of_plan, dns_label, evidence
from ditplan.exporting.launchers import PORT, HostShare, ranks_per_host, shares_of
from ditplan.profiles.backend import Exported
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan

IMAGE = "your-registry.example/your-image:tag"
SCRIPT = "/job/job.py"
GROUP = "ranks"
"""The one group of a JobSet's jobs."""

LONGEST_LABEL = 63


def export_kubernetes(plan: ExecutionPlan, name: str) -> Exported:
    """An Indexed Job and its headless Service, as YAML (of which JSON is a part)."""
    each, hosts, label = _sizes(plan, "an Indexed Job")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": label},
        "spec": {
            "clusterIP": "None",
            # ranks look for each other before any of them is ready
            "publishNotReadyAddresses": True,
            "selector": {"job-name": label},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }
    pod = _pod(f"{label}-0.{label}", hosts, each) | {"subdomain": label}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": label},
        "spec": _job_spec(hosts, {"metadata": {"labels": {"job-name": label}}, "spec": pod}),
    }
    return _exported("kubernetes", plan, name, (service, job), why_refused(job))


def export_jobset(plan: ExecutionPlan, name: str) -> Exported:
    """A JobSet, as YAML: its controller makes the headless Service, and the pods' subdomain."""
    each, hosts, label = _sizes(plan, "a JobSet")
    pod = _pod(f"{label}-{GROUP}-0-0.{label}", hosts, each)
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": label},
        "spec": {
            "network": {
                "enableDNSHostnames": True,
                "subdomain": label,
                "publishNotReadyAddresses": True,
            },
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [
                {
                    "name": GROUP,
                    "replicas": 1,
                    "template": {"spec": _job_spec(hosts, {"spec": pod})},
                }
            ],
        },
    }
    return _exported("jobset", plan, name, (jobset,), why_set_refused(jobset))


def why_refused(job: dict[str, Any]) -> str | None:
    """Why a server would refuse an Indexed Job, in a sentence; its schema alone lets all of this
    through (seen with the schema of 1.37).
    """
    pod = job["spec"]["template"]["spec"]
    return _why_template_refused(job["spec"]) or _why_no_labels(
        (job["metadata"]["name"], pod["subdomain"])
    )


def why_set_refused(jobset: dict[str, Any]) -> str | None:
    """Why a server, or JobSet's webhook, would refuse a JobSet of Indexed Jobs."""
    spec, name = jobset["spec"], jobset["metadata"]["name"]
    if not spec.get("replicatedJobs"):
        return "a JobSet needs replicatedJobs"
    names = [job["name"] for job in spec["replicatedJobs"]]
    if len(set(names)) < len(names):
        return "the replicatedJobs of a JobSet need a name each"
    for job in spec["replicatedJobs"]:
        if fault := _why_template_refused(job["template"]["spec"]):
            return fault
        last = f"{job.get('replicas', 1) - 1}-{job['template']['spec']['completions'] - 1}"
        if len(pod := f"{name}-{job['name']}-{last}") > LONGEST_LABEL:
            return f"the pod {pod} has a name of more than {LONGEST_LABEL} characters"
    return _why_no_labels((name, spec["network"]["subdomain"], *names))


def _why_template_refused(spec: dict[str, Any]) -> str | None:
    if spec.get("completionMode") != "Indexed" or not spec.get("completions"):
        return "an Indexed Job needs completionMode Indexed and its number of completions"
    if spec.get("parallelism") != spec["completions"]:
        return "all pods of a job must run at once: parallelism must equal completions"
    if spec["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        return "a Job's restartPolicy must be Never or OnFailure"
    return None


def _why_no_labels(names: Iterable[str]) -> str | None:
    for label in names:
        if dns_label(label) != label:
            return f"{label!r} is no DNS label; use lower-case letters, digits and dashes"
    return None


def _sizes(plan: ExecutionPlan, tool: str) -> tuple[int, int, str]:
    """Ranks of each host, hosts, and what the job is called.

    Raises:
        InputError: not all hosts have as many.
    """
    label = dns_label(f"ditplan-{plan.model.name}-{digest_of_plan(plan)[:8]}")
    return ranks_per_host(plan, tool), len(shares_of(plan)), label


def _exported(
    to: str,
    plan: ExecutionPlan,
    name: str,
    documents: tuple[dict[str, Any], ...],
    fault: str | None,
) -> Exported:
    if fault:
        raise InputError(f"{name}: {fault}")
    left = tuple(_not_expressed(shares_of(plan)))
    lines = [
        f"Set the image ({IMAGE}), put a script that calls ditplan.parallelize at {SCRIPT},",
        "then `kubectl apply -f FILE`.",
        *evidence(plan, name, not_expressed=left),
    ]
    text = "".join(f"---\n{_yaml(document)}" for document in documents)
    return Exported(to, commented(lines) + text, left)


def _pod(head: str, hosts: int, each: int) -> dict[str, Any]:
    """A host's pod: torchrun with the rendezvous at the first pod, whose name is `head`."""
    where = "--standalone"
    if hosts > 1:
        where = (
            f"--nnodes={hosts} --node-rank=$(JOB_COMPLETION_INDEX) "
            f"--master-addr={head} --master-port={PORT}"
        )
    container = {
        "name": "ranks",
        "image": IMAGE,
        "command": ["torchrun", *where.split(), f"--nproc-per-node={each}", SCRIPT],
        "resources": {"limits": {"nvidia.com/gpu": each}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "restartPolicy": "Never",
        "containers": [container],
        # NCCL's buffers lie there, and a container's own 64 MB are too few
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
    }


def _job_spec(hosts: int, template: dict[str, Any]) -> dict[str, Any]:
    return {
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,
        "template": template,
    }


def _not_expressed(shares: tuple[HostShare, ...]) -> list[str]:
    found = []
    if any(share.name for share in shares):
        names = ", ".join(share.name for share in shares)
        found.append(f"the hosts {names}: pods go where there is room; add a nodeSelector")
    if not all(share.has_first_devices for share in shares):
        found.append("which GPUs of a host: Kubernetes hands out any")
    return found


def _yaml(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
