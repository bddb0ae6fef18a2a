"""The command group: what it lists, what it imports, what it says of itself."""

import importlib.metadata
import json
import platform
import subprocess
import sys

import pytest

import cortex
from cortex.cli import version
from cortex.cli.main import COMMANDS
from cortex.service.stamp import Stamp


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


def test_version_names_commit_flavour_python_and_torch(invoke):
    line = invoke("version").stdout
    assert line.startswith(f"cortex {cortex.__version__} (")
    assert line.count("\n") == 1
    assert "checkout" in line
    assert "Python 3." in line
    assert "torch" in line
    assert invoke("--version").stdout == f"cortex {cortex.__version__}\n"


def test_version_as_json_has_what_a_bug_report_needs(invoke):
    said = json.loads(invoke("version", "--json").stdout)
    assert said["version"] == cortex.__version__
    assert said["flavour"] == "checkout"
    assert said["python"] == platform.python_version()
    # What pyproject.toml asks for, of gateways and neurons; not the tools of the tests.
    assert said["packages"]["trio"] == importlib.metadata.version("trio")
    assert "safetensors" in said["packages"]
    assert "pytest" not in said["packages"]


def test_the_build_of_torch_is_read_from_its_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert version.torch_build() is None
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it takes seconds to import')\n")
    (package / "version.py").write_text("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n")
    info = tmp_path / "torch-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    assert version.torch_build() == {"version": "2.13.0", "cuda": "13.0", "hip": None}


@pytest.mark.parametrize(("changed", "dirty"), [(False, False), (True, True)])
def test_a_checkout_with_changes_is_dirty(tmp_path, monkeypatch, changed, dirty):
    package = tmp_path / "cortex"
    package.mkdir()
    (package / "__init__.py").write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    if changed:
        (package / "new.py").write_text("")
    monkeypatch.setattr(version.stamp, "PACKAGE", package)
    assert version.looked_at(Stamp("checkout", "abc")).dirty is dirty


def test_without_git_nobody_knows_whether_a_checkout_has_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version.looked_at(Stamp("checkout", "abc")) == Stamp("checkout", "abc", None)
