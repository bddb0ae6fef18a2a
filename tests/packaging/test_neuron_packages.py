"""The neuron's packages, with torch inside: installed beside the gateway's, and a model answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
import warnings
import zipfile
from pathlib import Path

import pytest
from fakes import package_files
from fakes.package_files import PYTHON, ROOT, succeed
from fakes.programs import program, unavailable
from fakes.role_process import RoleProcess
from fakes.throwaway_root import ThrowawayRoot

STATE = "/var/lib/cortex-neuron"
CACHE = "/var/cache/cortex-neuron"
UNIT = ROOT / "packaging" / "systemd" / "cortex-neuron.service"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All packages of the neuron for the CPU, by the start of their name and their kind."""
    folder = tmp_path_factory.mktemp("neuron")
    zipapp = folder / "cortex.pyz"
    build = [sys.executable, str(ROOT / "packaging" / "build"), "cpu", "--output", str(zipapp)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=600, check=False)
    if "pip's index gave 'cuda'" in done.stderr:
        unavailable("pip's index has no torch for the CPU")
    assert done.returncode == 0, done.stderr
    program("rpmbuild"), program("dpkg-deb")
    built = package_files.build(folder, "all", "--flavour", "cpu", "--zipapp", zipapp)
    return by_name(built)


def by_name(built: list[Path]) -> dict[str, Path]:
    return {re.split(r"[-_]\d", path.name)[0] + path.suffix: path for path in built}


@pytest.fixture(scope="module")
def light(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages for CUDA, around a small archive that says it was built so."""
    folder = tmp_path_factory.mktemp("cuda")
    zipapp = folder / "cortex.pyz"
    shutil.copy(slim, zipapp)
    with warnings.catch_warnings(), zipfile.ZipFile(zipapp, "a") as archive:
        warnings.simplefilter("ignore")  # of two members of a name the last counts
        archive.writestr("site-packages/cortex/flavour.txt", "cuda\n")
    return by_name(package_files.build(folder, "all", "--flavour", "cuda", "--zipapp", zipapp))


@pytest.fixture(scope="module")
def installed(made: dict[str, Path], gateway_deb: Path, throwaway: ThrowawayRoot) -> ThrowawayRoot:
    """The root, with the gateway and the neuron side by side."""
    throwaway.install(gateway_deb, made["cortex-neuron.deb"], made["cortex-neuron-cpu.deb"])
    return throwaway


def environment_of_the_unit() -> dict[str, str]:
    """What systemd would set, its folders included."""
    lines = re.findall(r"^Environment=(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE)
    found = {n: v.replace("%S", "/var/lib").replace("%C", "/var/cache") for n, v in lines}
    return {**found, "STATE_DIRECTORY": STATE, "CACHE_DIRECTORY": CACHE}


def check_flavour(made: dict[str, Path], own: str, other: str) -> None:
    names = ("cortex-neuron", f"cortex-neuron-{own}")
    assert set(made) == {f"{name}.{kind}" for name in names for kind in ("rpm", "deb")}
    rpm, package = program("rpm"), made[f"cortex-neuron-{own}.rpm"]
    assert succeed(rpm, "-qp", "--conflicts", package).strip() == f"cortex-neuron-{other}"
    needed = succeed(rpm, "-qp", "--requires", package).splitlines()
    assert f"python(abi) = {PYTHON}" in needed
    assert not [line for line in needed if ".so" in line]
    assert "/usr/lib/cortex-neuron/cortex.pyz" in succeed(rpm, "-qlp", package)
    assert "/usr/lib/cortex-neuron" not in succeed(rpm, "-qlp", made["cortex-neuron.rpm"])
    told = succeed("dpkg-deb", "--field", made[f"cortex-neuron-{own}.deb"], "Conflicts")
    assert told.strip() == f"cortex-neuron-{other}"


def test_a_flavour_brings_the_program_and_excludes_the_other(
    made: dict[str, Path], light: dict[str, Path]
) -> None:
    check_flavour(made, "cpu", "cuda")
    check_flavour(light, "cuda", "cpu")


def test_rpmlint_and_lintian_find_nothing_wrong(light: dict[str, Path]) -> None:
    config = ROOT / "packaging" / "rpm" / "rpmlint.toml"
    rpms = [path for name, path in light.items() if name.endswith(".rpm")]
    told = succeed(program("rpmlint"), "--config", config, *rpms)
    assert " 0 errors" in told, told
    suppressed = ROOT / "packaging" / "deb" / "lintian-suppressed"
    command = [program("lintian"), "--allow-root", "--tag-display-limit", "0"]
    debs = [path for name, path in light.items() if name.endswith(".deb")]
    assert succeed(*command, "--suppress-tags-from-file", suppressed, *debs) == ""


def test_an_archive_of_another_flavour_is_refused(slim: Path, tmp_path: Path) -> None:
    script = ROOT / "packaging" / "packages"
    command = [sys.executable, str(script), "deb", "--flavour", "cpu", "--zipapp", str(slim)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "is of the flavour slim, not cpu" in done.stderr
    assert not list(tmp_path.iterdir())


def test_it_stands_beside_the_gateway_with_a_user_of_its_own(installed: ThrowawayRoot) -> None:
    assert installed.owners("/etc/cortex/neuron.toml") == "0640 root cortex-neuron"
    assert installed.owners("/etc/cortex/cortex.toml") == "0640 root cortex"
    assert installed.owners(STATE) == "0750 cortex-neuron cortex-neuron"
    assert {"video", "render"} <= set(installed.run("id", "-Gn", "cortex-neuron").split())
    told = installed.run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{UNIT.name}")
    assert "cortex" not in told, told


def test_the_installed_neuron_serves_a_token_as_its_user(
    installed: ThrowawayRoot, tmp_path: Path
) -> None:
    words = ("cortex-neuron", "neuron", "--config", "/etc/cortex/neuron.toml")
    words += ("--listen", "127.0.0.1:0", "--port", "0", "--model", "cortex/demo")
    start = installed.command("env", "-C", STATE, *words, user="cortex-neuron")
    environment = {**installed.environment(), **environment_of_the_unit()}
    environment["CC"] = "/bin/false"  # torch computes: compiling would take longer than the rest
    with RoleProcess(start, environment, tmp_path) as neuron:
        url = neuron.url_when_listening(seconds=120)
        neuron.wait_for_line("loaded model=cortex/demo", 120)
        question = {"role": "user", "content": "Which roles does cortex have?"}
        body = {"model": "cortex/demo", "messages": [question], "max_tokens": 1}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["usage"]["completion_tokens"] == 1
        installed.run("pkill", "-TERM", "-u", "cortex-neuron", "-f", "cortex-neuron neuron")
        assert neuron.wait(seconds=60) == 0
    # It runs from what the service's own folder holds by now.
    version = ("env", f"SHIV_ROOT={CACHE}", "cortex-neuron", "version")
    told = installed.run(*version, user="cortex-neuron")
    assert re.match(r"cortex .*cpu.* torch \d", told)


def test_a_purge_leaves_the_gateway_alone(installed: ThrowawayRoot) -> None:
    weights = installed.path(f"{STATE}/huggingface/model")
    weights.mkdir(parents=True)
    installed.run("dpkg", "--purge", "cortex-neuron-cpu", "cortex-neuron")
    assert not weights.exists()
    assert not installed.path(CACHE).exists()
    assert not installed.path("/etc/cortex/neuron.toml").exists()
    assert installed.path("/etc/cortex/cortex.toml").exists()
    assert installed.run("cortex", "version").startswith("cortex ")
