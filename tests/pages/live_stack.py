"""A live `cortex up`, in a folder laid out like a checkout, that runs the blocks of the pages."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fakes.programs import program
from fakes.role_process import RoleProcess
from pages.blocks import ENDLESS, ROOT, STAND_INS, Block

GATEWAY = "[usage]\nrequest_log = true\n"
CATALOGUE = '[[models]]\nid = "cortex/demo"\n'  # a model that is not loaded can be pinned, too
START_SECONDS = 120
BLOCK_SECONDS = 60
SHARED = ("cortex", "docs", "packaging", "tests", "pyproject.toml", "shiv.spec")
SECRET = re.compile(r"\bctx-[\w-]{20,}")
ADDS_KEY = re.compile(r"cortex keys add .*")
# What the checkout's cortex.py becomes once its environment is whole.
ENTRY = "import sys; from cortex.cli.main import main; sys.argv[0] = 'cortex'; sys.exit(main())"


def free_ports() -> dict[str, str]:
    """The default ports, and the free ones that stand for them."""
    with ExitStack() as open_sockets:
        found = {}
        for port in ("31313", "31314", "13131"):
            probe = open_sockets.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found[port] = str(probe.getsockname()[1])
        return found


def write_script(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


class LiveStack:
    """A folder like a checkout, a PATH with `cortex` on it, and one gateway that answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports = folder / "checkout", free_ports()
        self.folder.mkdir()
        for name in SHARED:
            (self.folder / name).symlink_to(ROOT / name)
        (self.folder / "cortex.py").write_text(ENTRY)
        config = folder / "cortex.toml"
        config.write_text(GATEWAY)
        (folder / "models.toml").write_text(CATALOGUE)
        tools = folder / "bin"
        python = f'PYTHONPATH="{ROOT}" exec "{sys.executable}"'
        write_script(self.folder / ".venv" / "bin" / "python", f'{python} "$@"')
        write_script(tools / "python3", f'{python} "$@"')
        write_script(tools / "cortex", f'{python} -P -m cortex "$@"')
        # An answer that says no is a failure here, which curl by itself does not tell.
        write_script(tools / "curl", f'exec "{program("curl")}" --fail-with-body "$@"')
        self.environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            # Kernels are compiled once for all tests.
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "XDG_STATE_HOME": str(folder / "state"),
            "CORTEX_CONFIG": str(config),
            "CORTEX_ENDPOINT": f"http://127.0.0.1:{self.ports['31313']}",
            "NEURON_THREADS": "1",
        }

    @contextmanager
    def up(self) -> Iterator[LiveStack]:
        """Run `python3 cortex.py up`, as the README says, until the block ends."""
        flags = {"--port": "31313", "--metrics-port": "31314", "--neuron-port": "13131"}
        command = ["python3", "cortex.py", "up"]
        for flag, port in flags.items():
            command += [flag, self.ports[port]]
        shell = ["/bin/sh", "-c", 'exec "$0" "$@"', *command]  # which finds python3 on that PATH
        with RoleProcess(shell, self.environment, self.folder) as process:
            process.wait_for_line(r"Anthropic\s+http", START_SECONDS)
            yield self
            assert process.terminate(60) == 0

    def localised(self, text: str) -> str:
        """*text* with this stack's ports, and with what there is here for what the reader has."""
        for port, mine in self.ports.items():
            text = re.sub(rf"(?<!\d){port}(?!\d)", mine, text)
        for name, mine in STAND_INS.items():
            text = text.replace(name, mine)
        accounts = Path(self.environment["XDG_STATE_HOME"], "cortex", "accounts.db")
        return re.sub(r"(?<=\s)accounts\.db\b", str(accounts), text)

    def run(self, block: Block) -> str:
        """Run *block*, which must succeed, and return what it printed."""
        text = self.localised(block.commands)
        command = ["python3", "-c", text] if block.language == "python" else ["bash", "-ec", text]
        shell = ["/bin/sh", "-c", 'exec "$0" "$@"', *command]
        endless = block.entry(ENDLESS)
        if endless is not None:
            with RoleProcess(shell, self.environment, self.folder) as process:
                process.wait_for_line(ENDLESS[endless], BLOCK_SECONDS)
            return "".join(process.output)
        done = subprocess.run(
            shell,
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_SECONDS,
        )
        assert done.returncode == 0, f"{block}\nended with {done.returncode}:\n{done.stdout}"
        self._take_keys(text, done.stdout)
        return done.stdout

    def _take_keys(self, commands: str, output: str) -> None:
        """Have the commands that follow send the key that was made, an admin's if there is one."""
        made = zip(ADDS_KEY.findall(commands), SECRET.findall(output), strict=False)
        for _command, secret in sorted(made, key=lambda pair: "--scope admin" in pair[0]):
            self.environment["CORTEX_API_KEY"] = secret
