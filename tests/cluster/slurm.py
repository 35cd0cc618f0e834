"""A Slurm of the machines: the controller on one, a slurmd on each of the others."""

import os
import secrets
import time
from collections.abc import Mapping, Sequence

from tests.cluster.machines import STARTING_S, Machine

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "salloc", "sbatch", "sinfo")
FOLDER = "/tmp/slurm"
SOCKET = "/run/munge.socket"
ENVIRONMENT: Mapping[str, str] = {"SLURM_CONF": f"{FOLDER}/slurm.conf"}
"""What its commands need."""


def start_slurm(controller: Machine, nodes: Sequence[Machine]) -> None:
    """Starts everything and waits until all nodes are idle.

    Raises:
        TimeoutError: they aren't; the message holds the logs.
    """
    key = secrets.token_hex(64)
    text = configuration(controller, nodes)
    for machine in (controller, *nodes):
        machine.write(f"{FOLDER}/slurm.conf", text)
        # Machines have no control groups, which the other plugin would look for.
        machine.write(f"{FOLDER}/cgroup.conf", "CgroupPlugin=cgroup/v1\n")
        machine.write(f"{FOLDER}/munge.key", key).chmod(0o400)
        machine.must(
            *("munged", "--force", f"--key-file={FOLDER}/munge.key", f"--socket={SOCKET}"),
            *(f"--log-file={FOLDER}/munge.log", f"--pid-file={FOLDER}/munge.pid"),
            f"--seed-file={FOLDER}/munge.seed",
        )
        for folder in ("state", "spool"):
            machine.path(f"{FOLDER}/{folder}").mkdir()
    controller.start(["slurmctld", "-D"], environment=ENVIRONMENT)
    for node in nodes:
        node.start(["slurmd", "-D", "-N", node.name], environment=ENVIRONMENT)
    deadline = time.monotonic() + STARTING_S
    while idle_nodes(controller) != {node.name for node in nodes}:
        if time.monotonic() > deadline:
            logs = [
                log.read_text()
                for machine in (controller, *nodes)
                for log in machine.path(FOLDER).glob("*.log")
            ]
            raise TimeoutError("the nodes of Slurm aren't idle:\n" + "\n".join(logs))
        time.sleep(0.2)


def idle_nodes(controller: Machine) -> set[str]:
    """The nodes that would take a job."""
    words = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    asked = controller.start(words, environment=ENVIRONMENT)
    return set(asked.finished(STARTING_S).stdout.split())


def configuration(controller: Machine, nodes: Sequence[Machine]) -> str:
    """slurm.conf, the same on all machines."""
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={controller.name}({controller.address})",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"AuthInfo=socket={SOCKET}",
        f"StateSaveLocation={FOLDER}/state",
        f"SlurmdSpoolDir={FOLDER}/spool",
        f"SlurmctldPidFile={FOLDER}/slurmctld.pid",
        f"SlurmdPidFile={FOLDER}/slurmd.pid",
        f"SlurmctldLogFile={FOLDER}/slurmctld.log",
        f"SlurmdLogFile={FOLDER}/slurmd.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "ReturnToService=2",
        "SlurmdTimeout=20",
        "KillWait=5",
        *(
            f"NodeName={node.name} NodeAddr={node.address} CPUs={os.cpu_count()} State=UNKNOWN"
            for node in nodes
        ),
        "PartitionName=all Nodes=ALL Default=YES OverSubscribe=FORCE:16 MaxTime=INFINITE",
    ]
    return "\n".join(lines) + "\n"
