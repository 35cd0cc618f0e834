"""How long `profile` takes for this machine's two CPU ranks, from the command line on.

python -m benchmarks.profile_localhost
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import described

CLI = Path(__file__).parents[1] / "cli.py"
ASKED_S = 60.0


def profile_once(hosts: str, out: Path) -> tuple[float, dict[str, object]]:
    """Seconds of a profile, and what it says of itself."""
    command = [sys.executable, str(CLI), "profile", "--hosts", hosts, "--out", str(out), "--json"]
    began_s = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return time.monotonic() - began_s, found


def main() -> int:
    """Prints each profile's seconds; 1 if one took longer than is asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", default="localhost:2")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    say = sys.stdout.write
    say(f"python -m benchmarks.profile_localhost, {datetime.now(UTC):%Y-%m-%d}\n")
    say(f"{described('torch')}; load before: {load}\n\n")
    took_s = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.repeats):
            seconds, found = profile_once(args.hosts, Path(folder) / f"{number}.json")
            took_s.append(seconds)
            links = found["links"]
            assert isinstance(links, list)
            say(f"profile --hosts {args.hosts}: {seconds:.1f} s, {len(links)} links, ")
            say(f"{found['collectives']} tables\n")
    say(f"\nslowest {max(took_s):.1f} s of {ASKED_S:g} s asked\n")
    return int(max(took_s) > ASKED_S)


if __name__ == "__main__":
    sys.exit(main())
