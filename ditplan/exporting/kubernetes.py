"""A plan as a Job of Kubernetes: a pod a host, which find each other by a Service without an
address.
"""

import json
from typing import Any

from ditplan.exporting.exported import commented, digest_of_plan, dns_label, evidence
from ditplan.exporting.launchers import PORT, HostShare, ranks_per_host, shares_of
from ditplan.profiles.backend import Exported
from ditplan.profiles.errors import InputError
from ditplan.profiles.plan import ExecutionPlan

IMAGE = "your-registry.example/your-image:tag"
SCRIPT = "/job/job.py"


def export_kubernetes(plan: ExecutionPlan, name: str) -> Exported:
    """An Indexed Job and its headless Service, as YAML (of which JSON is a part)."""
    each, shares = ranks_per_host(plan, "an Indexed Job"), shares_of(plan)
    label = dns_label(f"ditplan-{plan.model.name}-{digest_of_plan(plan)[:8]}")
    left = tuple(_not_expressed(shares))
    lines = [
        f"Set the image ({IMAGE}), put a script that calls ditplan.parallelize at {SCRIPT},",
        "then `kubectl apply -f FILE`.",
        *evidence(plan, name, not_expressed=left),
    ]
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
    documents = (service, _job(label, len(shares), each))
    if fault := why_refused(documents[1]):
        raise InputError(f"{name}: {fault}")
    text = "".join(f"---\n{_yaml(document)}" for document in documents)
    return Exported("kubernetes", commented(lines) + text, left)


def why_refused(job: dict[str, Any]) -> str | None:
    """Why a server would refuse an Indexed Job, in a sentence; its schema alone lets all of this
    through (seen with the schema of 1.37).
    """
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    if spec.get("completionMode") != "Indexed" or not spec.get("completions"):
        return "an Indexed Job needs completionMode Indexed and its number of completions"
    if spec.get("parallelism") != spec["completions"]:
        return "all pods of a job must run at once: parallelism must equal completions"
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        return "a Job's restartPolicy must be Never or OnFailure"
    for label in (job["metadata"]["name"], pod["subdomain"]):
        if dns_label(label) != label:
            return f"{label!r} is no DNS label; use lower-case letters, digits and dashes"
    return None


def _job(label: str, hosts: int, each: int) -> dict[str, Any]:
    where = "--standalone"
    if hosts > 1:
        where = (
            f"--nnodes={hosts} --node-rank=$(JOB_COMPLETION_INDEX) "
            f"--master-addr={label}-0.{label} --master-port={PORT}"
        )
    container = {
        "name": "ranks",
        "image": IMAGE,
        "command": ["torchrun", *where.split(), f"--nproc-per-node={each}", SCRIPT],
        "resources": {"limits": {"nvidia.com/gpu": each}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "subdomain": label,
        "restartPolicy": "Never",
        "containers": [container],
        # NCCL's buffers lie there, and a container's own 64 MB are too few
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": label},
        "spec": {
            "completionMode": "Indexed",
            "completions": hosts,
            "parallelism": hosts,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"job-name": label}}, "spec": pod},
        },
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
