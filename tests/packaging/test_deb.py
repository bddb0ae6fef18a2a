"""The Debian package of the gateway: built, installed into a throwaway root, run, taken out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from fakes import package_files
from fakes.package_files import PYTHON, ROOT, succeed
from fakes.programs import program
from fakes.role_process import RoleProcess, get_json
from fakes.throwaway_root import ThrowawayRoot

CONFIG = "/etc/cortex/cortex.toml"
STATE = "/var/lib/cortex"
SERVED = '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\ndrain_seconds = 1\n'

pytestmark = pytest.mark.slow


def field(package: Path, name: str) -> str:
    return succeed("dpkg-deb", "--field", package, name).strip()


@pytest.fixture(scope="module")
def installed(gateway_deb: Path, throwaway: ThrowawayRoot) -> ThrowawayRoot:
    """The root, after `dpkg --install`."""
    throwaway.install(gateway_deb)
    return throwaway


def test_the_same_commit_gives_the_same_bytes(
    gateway_deb: Path, slim: Path, tmp_path: Path
) -> None:
    # Elsewhere, and of an archive that is younger.
    copy = tmp_path / "other" / "cortex.pyz"
    copy.parent.mkdir()
    for suffix in ("", ".cdx.json"):
        shutil.copy(f"{slim}{suffix}", f"{copy}{suffix}")
    (again,) = package_files.build(tmp_path, "deb", "--zipapp", copy)
    assert again.name == gateway_deb.name
    assert package_files.digest(again) == package_files.digest(gateway_deb)


def test_it_needs_the_python_of_its_archive(gateway_deb: Path) -> None:
    major, minor = PYTHON.split(".")
    wanted = f"python3 (>= {PYTHON}), python3 (<< {major}.{int(minor) + 1})"
    assert field(gateway_deb, "Depends").startswith(wanted)
    assert field(gateway_deb, "Version").endswith("-1")


def test_lintian_finds_nothing(gateway_deb: Path) -> None:
    suppressed = ROOT / "packaging" / "deb" / "lintian-suppressed"
    command = [program("lintian"), "--allow-root", "--tag-display-limit", "0"]
    assert succeed(*command, "--suppress-tags-from-file", suppressed, gateway_deb) == ""


def test_every_suppressed_tag_has_its_reason() -> None:
    for name in ("deb/lintian-suppressed", "rpm/rpmlint.toml"):
        lines = (ROOT / "packaging" / name).read_text().splitlines()
        entries = [n for n, line in enumerate(lines) if re.match(r"\s*[\"a-z]", line)]
        first = [n for n in entries if n - 1 not in entries]
        assert all(lines[n - 1].strip().startswith("#") for n in first), name


def test_its_user_files_and_folders_are_as_they_should(installed: ThrowawayRoot) -> None:
    user = installed.run("getent", "passwd", "cortex").strip()
    assert user.endswith(f":{STATE}:/usr/sbin/nologin")
    assert installed.owners(CONFIG) == "0640 root cortex"
    assert installed.owners("/etc/cortex/models.toml") == "0640 root cortex"
    assert installed.owners("/etc/cortex") == "0755 root root"
    assert installed.owners(STATE) == "0750 cortex cortex"
    assert installed.owners("/var/cache/cortex") == "0750 cortex cortex"
    assert installed.owners("/usr/lib/cortex/cortex.pyz") == "0755 root root"
    assert installed.run("dpkg", "--verify", "cortex") == ""


def test_nothing_is_started_or_enabled(installed: ThrowawayRoot) -> None:
    told = installed.run("systemctl", "is-enabled", "cortex-gateway.service", check=False)
    assert told.strip() == "disabled"


def test_the_installed_unit_is_one_that_systemd_takes(installed: ThrowawayRoot) -> None:
    program("systemd-analyze")
    unit = "/usr/lib/systemd/system/cortex-gateway.service"
    told = installed.run("systemd-analyze", "verify", unit)
    assert "cortex" not in told, told


def test_the_firewall_knows_its_services(installed: ThrowawayRoot) -> None:
    command = program("firewall-offline-cmd")
    for service, port in (("cortex", 31313), ("cortex-metrics", 31314)):
        told = installed.run(command, f"--info-service={service}")
        assert f"ports: {port}/tcp" in told


def test_the_installed_command_runs_as_its_user(
    installed: ThrowawayRoot, gateway_deb: Path
) -> None:
    command = ("env", "SHIV_ROOT=/var/cache/cortex", f"HOME={STATE}", "cortex", "version")
    assert installed.run(*command, user="cortex").startswith("cortex ")
    assert installed.run("head", "-n1", "/usr/bin/cortex").startswith(f"#!/usr/bin/python{PYTHON}")


def test_the_installed_gateway_serves_as_its_user(installed: ThrowawayRoot, tmp_path: Path) -> None:
    config = installed.path("/etc/cortex/served.toml")
    config.write_text(SERVED)
    unit = installed.path("/usr/lib/systemd/system/cortex-gateway.service").read_text()
    start = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert start is not None
    words = start[1].replace(CONFIG, "/etc/cortex/served.toml").split()
    environment = {
        **installed.environment(),
        "SHIV_ROOT": "/var/cache/cortex",
        "STATE_DIRECTORY": STATE,
        "HOME": STATE,
    }
    with RoleProcess(installed.command(*words, user="cortex"), environment, tmp_path) as gateway:
        url = gateway.url_when_listening(seconds=60)
        assert get_json(f"{url}/health")["status"]
        installed.run("pkill", "-TERM", "-u", "cortex", "-f", "cortex gateway")
        assert gateway.wait(seconds=30) == 0
    config.unlink()
    assert installed.owners(f"{STATE}/accounts.db") == "0600 cortex cortex"


def test_the_manual_and_the_completions_are_found(installed: ThrowawayRoot) -> None:
    for page in ("1 cortex", "1 cortex-keys-add", "5 cortex.toml", "5 models.toml"):
        assert page.split()[1] in installed.run("man", "--where", *page.split())


def test_bash_completes_its_commands(installed: ThrowawayRoot) -> None:
    program("bash")
    script = "source /usr/share/bash-completion/completions/cortex; complete -p cortex; "
    script += "COMP_WORDS=(cortex vers) COMP_CWORD=1; _cortex_completion cortex; "
    told = installed.run("env", "HOME=/root", "bash", "-c", script + 'echo "<${COMPREPLY[*]}>"')
    assert "-F _cortex_completion cortex" in told
    assert "<version>" in told


def test_zsh_and_fish_take_what_completes_it(installed: ThrowawayRoot) -> None:
    zsh, fish = program("zsh"), program("fish")
    installed.run(zsh, "-n", "/usr/share/zsh/vendor-completions/_cortex")
    installed.run(fish, "--no-execute", "/usr/share/fish/vendor_completions.d/cortex.fish")


def test_an_upgrade_a_removal_and_a_purge_keep_what_they_must(
    installed: ThrowawayRoot, slim: Path, tmp_path: Path
) -> None:
    """The last test, since it takes the package out again."""
    for name in (CONFIG, f"{STATE}/pins.json"):
        installed.path(name).write_text("# mine\n")
    stamp = ("--stamp", "99.0.0", "f" * 40, "2000000000")
    (newer,) = package_files.build(tmp_path, "deb", "--zipapp", slim, *stamp)
    installed.install(newer)
    assert field(newer, "Version") == "99.0.0-1"
    assert "99.0.0-1" in installed.run("dpkg-query", "--show", "cortex")
    assert installed.path(CONFIG).read_text() == "# mine\n"
    assert installed.owners(CONFIG) == "0640 root cortex"

    installed.run("systemctl", "enable", "cortex-gateway.service")
    wants = installed.path("/etc/systemd/system/multi-user.target.wants/cortex-gateway.service")
    assert wants.is_symlink()
    installed.run("dpkg", "--remove", "cortex")
    assert not installed.path("/usr/bin/cortex").is_symlink()
    assert not installed.path("/usr/lib/cortex").exists()
    assert not wants.is_symlink()
    assert installed.path(CONFIG).read_text() == "# mine\n"

    told = installed.run("dpkg", "--purge", "cortex")
    assert f"{STATE} is kept" in told
    assert installed.path(f"{STATE}/pins.json").exists()
    assert not installed.path("/etc/cortex").exists()
    assert not installed.path("/var/cache/cortex").exists()
