"""Starts a unit as systemd would, where there is no systemd: `run_unit.py UNIT FOLDER`, as root, in the root that has it.

Makes the unit's folders for its user, takes its environment and ExecStart, and hears READY=1 by a socket of its own. FOLDER
gets `pid`, `ready` when it is, and `exit` with its exit code. Of what hardens a unit NoNewPrivileges and
MemoryDenyWriteExecute are done here, and a root that cannot be written (ProtectSystem) by try.sh; the rest is systemd's own.
"""

import contextlib
import ctypes
import grp
import os
import pwd
import shlex
import socket
import sys
from pathlib import Path

SECONDS = 120
NO_NEW_PRIVILEGES, MEMORY_DENY_WRITE_EXECUTE = 38, 65  # prctl(2)
FOLDERS = {"StateDirectory": "/var/lib", "CacheDirectory": "/var/cache"}


def main() -> int:
    unit, folder = read(Path(sys.argv[1])), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pid", "ready", "exit", "notify"):
        (folder / name).unlink(missing_ok=True)
    user, group = pwd.getpwnam(unit["User"][0]), grp.getgrnam(unit["Group"][0])
    for key, base in FOLDERS.items():
        for name in unit.get(key, []):
            path = Path(base, name)
            path.mkdir(exist_ok=True)
            path.chmod(int(unit[f"{key}Mode"][0], 8))
            os.chown(path, user.pw_uid, group.gr_gid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o666)
        heard.settimeout(SECONDS)
        pid = os.fork()
        if pid == 0:
            become(unit, user, group.gr_gid, {"NOTIFY_SOCKET": str(folder / "notify")})
        (folder / "pid").write_text(str(pid))
        while heard.recv(4096) != b"READY=1":
            pass
        (folder / "ready").touch()
        _, status = os.waitpid(pid, 0)
    (folder / "exit").write_text(str(os.waitstatus_to_exitcode(status)))
    return 0


def read(path: Path) -> dict[str, list[str]]:
    """Each key with its values, in order."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def become(unit: dict[str, list[str]], user: pwd.struct_passwd, group: int, more: dict[str, str]) -> None:
    """The unit's program, in this process."""
    told = dict(pair.partition("=")[::2] for line in unit.get("Environment", []) for pair in shlex.split(line))
    # Where this machine's package index is, is the host's matter: a service has it from the host's files.
    passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environ = passed | told | more | {"PATH": "/usr/bin:/bin", "HOME": user.pw_dir, "USER": user.pw_name}
    words = shlex.split(unit["ExecStart"][0])
    with contextlib.suppress(OSError):
        os.setsid()
    os.umask(int(unit["UMask"][0], 8))
    os.initgroups(user.pw_name, group)
    os.setgid(group)
    os.setuid(user.pw_uid)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    if unit.get("MemoryDenyWriteExecute") == ["true"] and prctl(MEMORY_DENY_WRITE_EXECUTE, 1, 0, 0, 0) != 0:
        sys.stderr.write("this kernel cannot deny that memory is written and run\n")
    os.execve(words[0], words, environ)


if __name__ == "__main__":
    sys.exit(main())
