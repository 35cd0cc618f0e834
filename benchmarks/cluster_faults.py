"""What faults of hosts and processes come to: seconds until nothing is left of the command, the
line on screen, the exit code, what survives.

    python -m benchmarks.cluster_faults

Makes machines out of network namespaces, as root: n1, where the command is typed, and the hosts n10
and n9 with two CPU ranks each, reached by ssh. The faults are those of the tests. The exit code is
1 where one isn't as its test expects.
"""

import sys
from datetime import UTC, datetime

from benchmarks.machine import described
from tests.cluster.faults import FAULTS, Fault, Observed, observe
from tests.cluster.secure_shell import machines_with_ssh


def main() -> int:
    """Prints a paragraph for each fault."""
    print(f"date: {datetime.now(UTC):%Y-%m-%dT%H:%MZ}")
    print(f"hardware: {described('torch', 'diffusers')}")
    print("command: python -m benchmarks.cluster_faults\n")
    wrong = 0
    with machines_with_ssh() as machines:
        for fault in FAULTS:
            seen = observe(machines, fault)
            print(paragraph(fault, seen), flush=True)
            wrong += bool(fault.differences(seen))
    print(f"{len(FAULTS)} faults, {wrong} of them otherwise than expected")
    return 1 if wrong else 0


def paragraph(fault: Fault, seen: Observed) -> str:
    """What one fault came to."""
    since = "it" if fault.during else "the start"
    rows = {
        "seconds": f"{seen.seconds:.1f} s from {since} until nothing runs on any host",
        "line": seen.line or "none",
        "exit code": str(seen.exit_code),
        "processes": "; ".join(seen.processes) or "none left",
        "folders": "; ".join(seen.folders) or "none left",
        "unexpected": "; ".join(fault.differences(seen)),
    }
    told = [f"  {name:<10} {text}" for name, text in rows.items() if text]
    return "\n".join((fault.name, *told, ""))


if __name__ == "__main__":
    sys.exit(main())
