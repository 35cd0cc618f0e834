"""Process 1 of a machine of the test cluster: furnishes its namespaces, then collects what has
ended, until its standard input ends and with it every process of the machine.

Run as `unshare --net --mount ... python -I -S machine_init.py NAME KEPT...`. FILES of /etc are new
and empty, and so are /tmp and /run; but a folder KEPT that lies below /tmp stays in place.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

FILES = ("hosts", "hostname", "passwd", "shadow", "resolv.conf")
DISK = "size=8g"
"""Of /tmp and /var/tmp, which are one; it is memory, of which only what is written counts."""


def main() -> None:
    """Furnishes, says "ready", and waits."""
    name, *kept = sys.argv[1:]
    socket.sethostname(name)
    # What of /tmp stays: held open, since the folder is covered before it is put back.
    held = [(path, os.open(path, os.O_PATH)) for path in kept if Path(path).is_relative_to("/tmp")]
    mount("-t", "sysfs", "sysfs", "/sys")
    mount("-t", "tmpfs", "-o", DISK, "tmpfs", "/tmp")
    mount("--bind", "/tmp", "/var/tmp")
    for place in ("/run", "/dev/shm"):
        mount("-t", "tmpfs", "tmpfs", place)
    for file in FILES:
        Path("/run", file).touch()
        mount("--bind", f"/run/{file}", f"/etc/{file}")
    for path, handle in held:
        Path(path).mkdir(parents=True, exist_ok=True)
        # spelled out, the descriptor's path would be that of what covers the folder
        mount("--no-canonicalize", "--bind", f"/proc/self/fd/{handle}", path, handle)
        os.close(handle)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGCHLD, collect)
    os.write(1, b"ready\n")
    while os.read(0, 1):
        pass


def mount(*words: str | int) -> None:
    """Calls mount(8); numbers among the words are descriptors that it inherits."""
    handles = [word for word in words if isinstance(word, int)]
    texts = [word for word in words if isinstance(word, str)]
    subprocess.run(["mount", *texts], check=True, pass_fds=handles)


def collect(*_: object) -> None:
    """Takes note of all children that have ended, as process 1 must."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
