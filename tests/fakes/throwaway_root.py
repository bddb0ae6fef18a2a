"""A root directory to install packages into: this machine's own, and what is changed is dropped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from fakes.programs import program, root, unavailable

# Held in memory, in a mount namespace of its own, until its standard input ends.
SETUP = """\
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$1/root/tmp"
echo ready
read -r _ || true
"""


class ThrowawayRoot:
    """Commands run in it as root, or as another user. Left, it and all that runs in it is gone."""

    def __init__(self, folder: Path) -> None:
        root()
        program("unshare"), program("nsenter")
        self._folder = folder

    def __enter__(self) -> ThrowawayRoot:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        command += ["sh", "-c", SETUP, "sh", str(self._folder)]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self.__exit__(None, None, None)
            unavailable("no overlay can be mounted here")
        # The child in the new namespace of processes: what it mounted, it sees.
        listed = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        (self._inside,) = listed.split()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(timeout=30)
        self._holder.stdout.close()

    def command(self, *words: str, user: str = "") -> list[str]:
        """*words* as a command of the host that runs in here."""
        inside = ["nsenter", f"--target={self._inside}", "--mount", "--pid", "--"]
        inside += ["chroot", f"{self._folder}/root"]
        return [*inside, *(("runuser", "-u", user, "--") if user else ()), *words]

    def run(self, *words: str, user: str = "", check: bool = True) -> str:
        """Run *words* and return what they printed, both streams together."""
        done = subprocess.run(
            self.command(*words, user=user),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{' '.join(words)}:\n{done.stdout}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        path = "/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}

    def path(self, inside: str) -> Path:
        """Where the host finds the path *inside*: through the process that holds the mounts."""
        return Path(f"/proc/{self._inside}/root{self._folder}/root{inside}")

    def bring(self, *files: Path) -> list[str]:
        """Copy *files* into its /tmp and return their paths there."""
        for file in files:
            shutil.copy(file, self.path("/tmp"))
        return [f"/tmp/{file.name}" for file in files]

    def owners(self, path: str) -> str:
        """Mode, user and group of *path*, as `0640 root cortex`."""
        return self.run("stat", "--format=%04a %U %G", path).strip()

    def install(self, *packages: Path) -> None:
        """Let dpkg install *packages*, which need the Python that runs the tests.

        Where the distribution has another one ours stands in, of which dpkg does not know.
        """
        python = self.path(f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
        if not python.exists():
            python.symlink_to(os.path.realpath("/proc/self/exe"))
        force = ("--force-depends",) if python.is_symlink() else ()
        paths = self.bring(*packages)
        self.run("dpkg", *force, "--install", *paths)
        self.run("rm", *paths)
