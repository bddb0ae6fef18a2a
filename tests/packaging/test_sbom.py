"""What lies beside an archive: its bill of materials and the sums that tell whether it is whole."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from fakes import zipapp
from packaging.utils import canonicalize_name

import cortex

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bill(slim: Path) -> dict[str, Any]:
    said = json.loads(slim.with_name("cortex.pyz.cdx.json").read_text())
    assert isinstance(said, dict)
    return said


def sbom(archive: Path) -> subprocess.CompletedProcess[str]:
    script = str(zipapp.ROOT / "packaging" / "sbom")
    command = [sys.executable, script, str(archive)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_is_valid_cyclonedx(slim: Path) -> None:
    text = slim.with_name("cortex.pyz.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"libary"')) is not None


def test_it_lists_what_is_in_the_archive_and_nothing_else(slim: Path, bill: dict[str, Any]) -> None:
    names = zipfile.ZipFile(slim).namelist()
    infos = {m[1] for name in names if (m := re.match(r"site-packages/([^/]+)\.dist-info/", name))}
    listed = [bill["metadata"]["component"], *bill["components"]]
    parts = [info.rpartition("-") for info in infos]
    assert {(canonicalize_name(name), version) for name, _, version in parts} == {
        (entry["name"], entry["version"]) for entry in listed
    }


def test_it_says_which_build_it_is_of(slim: Path, bill: dict[str, Any]) -> None:
    own = bill["metadata"]["component"]
    assert (own["name"], own["version"]) == ("cortex", cortex.__version__)
    assert own["licenses"] == [{"expression": "GPL-3.0-or-later"}]
    digest = hashlib.sha256(slim.read_bytes()).hexdigest()
    assert own["hashes"] == [{"alg": "SHA-256", "content": digest}]
    properties = {entry["name"]: entry["value"] for entry in own["properties"]}
    assert properties == {"cortex:commit": zipapp.COMMIT, "cortex:flavour": "slim"}


def test_each_package_has_a_licence_and_the_hash_of_a_locked_wheel(bill: dict[str, Any]) -> None:
    locks = "".join(path.read_text() for path in (zipapp.ROOT / "packaging/locks").glob("*.txt"))
    for package in bill["components"]:
        assert package["licenses"], package["name"]
        assert package["purl"] == f"pkg:pypi/{package['name']}@{package['version']}"
        (digest,) = package["hashes"]
        assert f"--hash=sha256:{digest['content']}" in locks


def test_it_says_what_needs_what(bill: dict[str, Any]) -> None:
    needs = {entry["ref"].split("@")[0]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert [ref for ref in needs["pkg:pypi/cortex"] if ref.startswith("pkg:pypi/safetensors@")]
    assert [ref for ref in needs["pkg:pypi/jinja2"] if ref.startswith("pkg:pypi/markupsafe@")]
    assert needs["pkg:pypi/markupsafe"] == []


def test_it_can_be_made_again_from_the_archive(slim: Path, bill: dict[str, Any]) -> None:
    done = sbom(slim)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for package in bill["components"]:
        package = {key: value for key, value in package.items() if key != "hashes"}
        assert package in again["components"]
    assert again["serialNumber"] == bill["serialNumber"]


def test_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pyz"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("site-packages/other-1.dist-info/METADATA", "Name: other\nVersion: 1\n")
    for archive in (other, Path(__file__), tmp_path / "missing.pyz"):
        done = sbom(archive)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1


def test_the_sums_hold(slim: Path) -> None:
    sums = slim.with_name("cortex.pyz.sha256")
    found = dict(line.split("  ")[::-1] for line in sums.read_text().splitlines())
    assert set(found) == {"cortex.pyz", "cortex.pyz.cdx.json"}
    for name, digest in found.items():
        assert hashlib.sha256(slim.with_name(name).read_bytes()).hexdigest() == digest
