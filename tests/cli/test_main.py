"""The command group: what it lists, what it imports, what it says of itself."""

import json
import subprocess
import sys

import pytest

import cortex
from cortex.cli.main import COMMANDS
from cortex.cli.version import commit_of


def test_every_command_is_listed_and_explains_itself(invoke):
    listing = invoke("--help").stdout
    for name in COMMANDS:
        assert name in listing
        help_text = invoke(name, "--help")
        assert help_text.exit_code == 0
        assert "Exit codes:" in help_text.stdout


def test_an_unknown_command_ends_with_2(invoke):
    assert invoke("gatway").exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_imports_a_role_or_torch_before_it_runs(command):
    program = (
        "import sys\n"
        "from cortex.cli.main import cli\n"
        f"cli(['{command}', '--help'], standalone_mode=False)\n"
        "roles = ('torch', 'tokenizers', 'cortex.gateway', 'cortex.neuron', 'cortex.engine')\n"
        "print('imported', [name for name in roles if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("imported []\n"), done.stderr


def test_version_names_commit_python_and_torch(invoke):
    line = invoke("version").stdout
    assert line.startswith(f"cortex {cortex.__version__} (")
    assert "Python 3." in line
    assert "torch" in line
    said = json.loads(invoke("version", "--json").stdout)
    assert said["version"] == cortex.__version__
    assert invoke("--version").stdout == f"cortex {cortex.__version__}\n"


def test_the_commit_comes_from_the_build_or_the_checkout(tmp_path):
    package = tmp_path / "cortex"
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    package.mkdir()
    assert commit_of(package) is None
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(package) is None
    (tmp_path / ".git" / "packed-refs").write_text("# pack\nabc refs/heads/main\n")
    assert commit_of(package) == "abc"
    (tmp_path / ".git" / "refs" / "heads" / "main").write_text("def\n")
    assert commit_of(package) == "def"
    (tmp_path / ".git" / "HEAD").write_text("123\n")
    assert commit_of(package) == "123"
    (package / "commit.txt").write_text("built\n")
    assert commit_of(package) == "built"
