"""A plan as a job of torchrun, Open MPI or Slurm: each starts a script that calls
`ditplan.parallelize`, which finds every rank's place in the plan by its host and GPU.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ditplan.exporting.exported import commented, digest_of_plan, evidence
from ditplan.profiles.backend import Exported
from ditplan.profiles.errors import InputError
from ditplan.profiles.host import Host
from ditplan.profiles.plan import ExecutionPlan

SCRIPT = '"${SCRIPT:?set SCRIPT to a script that calls ditplan.parallelize with the plan}"'
PORT = 29500


@dataclass(frozen=True)
class HostShare:
    """A host of a plan, and the numbers of the devices that it uses there, ascending."""

    name: str
    devices: tuple[int, ...]

    @property
    def has_first_devices(self) -> bool:
        """Whether they are those that a launcher takes by itself."""
        return self.devices == tuple(range(len(self.devices)))


def shares_of(plan: ExecutionPlan) -> tuple[HostShare, ...]:
    """The hosts of a plan in the order of its ranks; one, without a name, where the plan was made
    before plans said where their ranks are.

    Raises:
        InputError: what should be a host's name is none, and could be anything to a shell.
    """
    if not plan.locations:
        return (HostShare("", tuple(range(plan.mesh.size))),)
    devices: dict[str, list[int]] = {}
    for location in plan.locations:
        devices.setdefault(Host(location.host).name, []).append(location.device)
    return tuple(HostShare(name, tuple(sorted(found))) for name, found in devices.items())


def ranks_per_host(plan: ExecutionPlan, tool: str) -> int:
    """How many ranks each host has.

    Raises:
        InputError: not all hosts have as many; says which tool can do that.
    """
    counts = {len(share.devices) for share in shares_of(plan)}
    if len(counts) > 1:
        found = ", ".join(f"{share.name}: {len(share.devices)}" for share in shares_of(plan))
        raise InputError(
            f"{tool} starts as many ranks on every host, and the plan has {found}; export it to "
            "mpirun, or tune for as many GPUs of each host"
        )
    return counts.pop()


def visible_devices(shares: Sequence[HostShare]) -> str:
    """Lines of a shell script that show each host the plan's devices; none where those are the
    first ones.
    """
    if all(share.has_first_devices for share in shares):
        return ""
    if len(shares) == 1:
        return f"export CUDA_VISIBLE_DEVICES={_numbers(shares[0])}\n"
    cases = "".join(
        f"  {shlex.quote(share.name.partition('.')[0])}) "
        f"export CUDA_VISIBLE_DEVICES={_numbers(share)} ;;\n"
        for share in shares
    )
    return f'case "$(hostname -s)" in\n{cases}esac\n'


def export_torchrun(plan: ExecutionPlan, name: str) -> Exported:
    """A shell script to run on each host of the plan."""
    each, shares = ranks_per_host(plan, "torchrun"), shares_of(plan)
    if len(shares) == 1:
        how, where = "Run it on one host.", "--standalone"
    else:
        how = f"Run it on each of {len(shares)} hosts, with HEAD set to the name of one of them."
        where = (
            f"--nnodes={len(shares)} --rdzv-backend=c10d "
            f"--rdzv-id=ditplan-{digest_of_plan(plan)} "
            f'--rdzv-endpoint="${{HEAD:?set HEAD to the name of one of the hosts}}:{PORT}"'
        )
    command = f'exec torchrun {where} \\\n  --nproc-per-node={each} {SCRIPT} "$@"\n'
    return _script("torchrun", plan, name, how, visible_devices(shares) + command)


def export_mpirun(plan: ExecutionPlan, name: str) -> Exported:
    """A shell script that starts all ranks by Open MPI."""
    shares = shares_of(plan)
    hosts = ",".join(f"{share.name or 'localhost'}:{len(share.devices)}" for share in shares)
    started = f"python {SCRIPT}"
    if visible := visible_devices(shares):
        inner = f'{visible}exec python "$@"'
        started = f"bash -c {shlex.quote(inner)} ditplan {SCRIPT}"
    head = shares[0].name or "127.0.0.1"
    command = (
        f"exec mpirun --host {shlex.quote(hosts)} --map-by slot -np {plan.mesh.size} \\\n"
        f'  -x MASTER_ADDR="${{MASTER_ADDR:-{head}}}" -x MASTER_PORT="${{MASTER_PORT:-{PORT}}}" '
        f'\\\n  {started} "$@"\n'
    )
    return _script("mpirun", plan, name, "Run it on one host; for Open MPI 5.", command)


def export_slurm(plan: ExecutionPlan, name: str) -> Exported:
    """A batch script for sbatch."""
    each, shares = ranks_per_host(plan, "a batch script"), shares_of(plan)
    # plans for CPUs are in float32, and hardly any for GPUs
    on_gpus = plan.workload.dtype != "float32" or "graph" in plan.configuration.mode
    left = () if on_gpus else (f"GPUs, if it is for some: add `#SBATCH --gpus-per-node={each}`",)
    options = [
        f"--job-name=ditplan-{digest_of_plan(plan)[:8]}",
        f"--nodes={len(shares)}",
        f"--ntasks-per-node={each}",
        *([f"--gpus-per-node={each}"] if on_gpus else []),
    ]
    head = "".join(f"#SBATCH {option}\n" for option in options)
    command = (
        'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"\n'
        f"export MASTER_ADDR MASTER_PORT={PORT}\n"
        f'exec srun --kill-on-bad-exit=1 python {SCRIPT} "$@"\n'
    )
    how = "Submit it as `sbatch --export=ALL,SCRIPT=job.py FILE`."
    return _script("slurm", plan, name, how, command, head, left)


def _numbers(share: HostShare) -> str:
    return ",".join(map(str, share.devices))


def _script(
    to: str,
    plan: ExecutionPlan,
    name: str,
    how: str,
    command: str,
    head: str = "",
    left: tuple[str, ...] = (),
) -> Exported:
    lines = [how, *evidence(plan, name, not_expressed=left)]
    text = f"#!/usr/bin/env bash\n{head}{commented(lines)}set -euo pipefail\n\n{command}"
    return Exported(to, text, left)
