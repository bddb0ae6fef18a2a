"""The RPM of the gateway: built, checked, unpacked and run from its payload, installed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from fakes import package_files, zipapp
from fakes.package_files import PYTHON, ROOT, succeed, unpack_rpm
from fakes.programs import program, unavailable
from fakes.role_process import RoleProcess, get_json, write_gateway_config
from fakes.throwaway_root import ThrowawayRoot

CONFIG = "/etc/cortex/cortex.toml"

pytestmark = pytest.mark.slow


def query(package: Path, *what: str) -> list[str]:
    return succeed(program("rpm"), "--query", "--package", *what, package).splitlines()


@pytest.fixture(scope="module")
def payload(gateway_rpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("payload")
    unpack_rpm(gateway_rpm, folder)
    return folder


def test_rpmlint_finds_no_error(gateway_rpm: Path) -> None:
    config = ROOT / "packaging" / "rpm" / "rpmlint.toml"
    specs = sorted((ROOT / "packaging" / "rpm").glob("*.spec"))
    told = succeed(program("rpmlint"), "--config", config, gateway_rpm, *specs)
    assert " 0 errors" in told, told


def test_it_needs_the_python_of_its_archive_and_provides_its_user(gateway_rpm: Path) -> None:
    assert f"python(abi) = {PYTHON}" in query(gateway_rpm, "--requires")
    assert not [line for line in query(gateway_rpm, "--requires") if ".so" in line]
    assert {"user(cortex)", "group(cortex)"} <= set(query(gateway_rpm, "--provides"))


def test_configurations_are_marked_and_closed(gateway_rpm: Path) -> None:
    assert query(gateway_rpm, "--configfiles") == [CONFIG, "/etc/cortex/models.toml"]
    form = (
        "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags}\n]"
    )
    told = query(gateway_rpm, "--queryformat", form)
    assert f"{CONFIG} -rw-r----- root cortex cn" in told
    assert "/usr/share/licenses/cortex/LICENSE -rw-r--r-- root root l" in told
    assert {line.split()[2] for line in told} == {"root"}


def test_the_same_sources_give_the_same_bytes(
    gateway_rpm: Path, slim: Path, tmp_path: Path
) -> None:
    (again,) = package_files.build(tmp_path, "rpm", "--zipapp", slim)
    assert again.name == gateway_rpm.name
    assert package_files.digest(again) == package_files.digest(gateway_rpm)


def test_the_zipapp_is_what_was_built_but_for_its_first_line(payload: Path, slim: Path) -> None:
    installed, built = (payload / "usr/lib/cortex/cortex.pyz").read_bytes(), slim.read_bytes()
    first, _, rest = installed.partition(b"\n")
    assert first == f"#!/usr/bin/python{PYTHON} -sP".encode()
    assert rest == built.partition(b"\n")[2]
    assert os.readlink(payload / "usr/bin/cortex") == "../lib/cortex/cortex.pyz"


def test_the_command_runs_from_the_payload(payload: Path, cache: Path) -> None:
    done = zipapp.finished(payload / "usr/bin/cortex", cache, "version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cortex ")


def test_the_gateway_serves_from_the_payload(payload: Path, cache: Path, tmp_path: Path) -> None:
    config = write_gateway_config(tmp_path)
    start = zipapp.command(payload / "usr/bin/cortex", "gateway", "--config", str(config))
    with RoleProcess(start, zipapp.environment(cache), tmp_path) as gateway:
        url = gateway.url_when_listening(seconds=60)
        assert get_json(f"{url}/health")["status"]
        assert gateway.terminate(seconds=20) == 0


@pytest.mark.parametrize("name", ["cortex", "cortex-neuron"])
def test_the_specs_make_the_users_of_sysusers(name: str) -> None:
    spec = (ROOT / "packaging" / "rpm" / f"{name}.spec").read_text()
    written = (ROOT / "packaging" / "sysusers" / f"{name}.conf").read_text()
    made = re.findall(r"<<'EOF'[^\n]*\n(.*?)^EOF$", spec, re.MULTILINE | re.DOTALL)
    lines = [line for line in written.splitlines() if not line.startswith("#")]
    assert [text.splitlines() for text in made] == [lines]


def test_a_source_rpm_builds_the_zipapp_itself(tmp_path: Path) -> None:
    (source,) = package_files.build(tmp_path, "srpm")
    names = query(source, "--list")
    assert sorted(name.rpartition(".")[2] for name in names) == ["gz", "spec"]
    # As COPR does, with this Python in the place of the distribution's.
    command = [program("rpmbuild"), "--rebuild", "--nodeps", "--quiet"]
    command += ["--define", f"_topdir {tmp_path}/top", "--define", f"stamp_python {PYTHON}"]
    command += ["--define", f"build_python {shutil.which('python3')}"]
    succeed(*command, source)
    (made,) = tmp_path.glob("top/RPMS/*/cortex-*.rpm")
    unpack_rpm(made, tmp_path / "payload")
    (tmp_path / "shiv").mkdir()
    done = zipapp.finished(tmp_path / "payload/usr/bin/cortex", tmp_path / "shiv", "version")
    assert done.returncode == 0, done.stderr


def test_the_script_for_copr_writes_a_spec_and_its_sources(tmp_path: Path) -> None:
    git = program("git")
    if not (ROOT / ".git").exists():
        unavailable("this is no checkout")
    script = ROOT / "packaging" / "rpm" / "copr" / "script"
    command = ["env", f"REPOSITORY={ROOT}", "FLAVOUR=cpu", script]
    succeed(*command, folder=tmp_path)
    (archive,) = tmp_path.glob("cortex-*.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [archive.name, "cortex-neuron.spec"]
    )
    commit = succeed(git, "-C", ROOT, "rev-parse", "HEAD").strip()
    text = (tmp_path / "cortex-neuron.spec").read_text()
    assert f"%global stamp_commit {commit}\n" in text
    assert "%global stamp_prebuilt 0\n" in text


def test_the_scripts_are_sound() -> None:
    names = ("postinst", "prerm", "postrm", "flavour.postinst")
    scripts = [ROOT / "packaging" / "deb" / name for name in names]
    succeed(program("shellcheck"), *scripts, ROOT / "packaging/rpm/copr/script")


def test_it_installs_upgrades_and_goes(
    gateway_rpm: Path, slim: Path, throwaway: ThrowawayRoot, tmp_path: Path
) -> None:
    stamp = ("--stamp", "99.0.0", "f" * 40, "2000000000")
    (newer,) = package_files.build(tmp_path, "rpm", "--zipapp", slim, *stamp)
    older, newer_path = throwaway.bring(gateway_rpm, newer)
    # Started by this Python, which the distribution need not have.
    start = (os.path.realpath("/proc/self/exe"), "-sP", "/usr/bin/cortex")
    # What it needs is there, though this system's rpm does not know of it.
    throwaway.run("rpm", "--install", "--nodeps", older)
    assert throwaway.owners(CONFIG) == "0640 root cortex"
    assert throwaway.owners("/var/lib/cortex") == "0750 cortex cortex"
    assert "cortex " in throwaway.run(*start, "version")
    throwaway.path(CONFIG).write_text("# mine\n")
    throwaway.run("rpm", "--upgrade", "--nodeps", newer_path)
    assert throwaway.run("rpm", "--query", "cortex").startswith("cortex-99.0.0-1")
    assert throwaway.path(CONFIG).read_text() == "# mine\n"
    assert throwaway.owners(CONFIG) == "0640 root cortex"
    throwaway.run("rpm", "--erase", "cortex")
    assert not throwaway.path("/usr/lib/cortex").exists()
    assert throwaway.path(f"{CONFIG}.rpmsave").read_text() == "# mine\n"
