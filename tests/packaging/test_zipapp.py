"""cortex.pyz, the slim one: built twice, alike, and run as a user would, on its own."""

from __future__ import annotations

import fcntl
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import trio
from fakes import package_files, zipapp
from fakes.role_process import RoleProcess, get_json, write_gateway_config
from fakes.zipapp import command, environment, finished

import cortex

ROOT = Path(__file__).resolve().parents[2]
DAY_SECONDS = 24 * 3600

pytestmark = pytest.mark.slow


def test_the_same_inputs_give_the_same_bytes(slim: Path, tmp_path: Path) -> None:
    # Elsewhere, later, and under another umask.
    again = zipapp.build_slim(tmp_path / "elsewhere", umask=0o077)
    for suffix in ("", ".cdx.json", ".sha256"):
        name = f"{slim.name}{suffix}"
        built, before = again.with_name(name), slim.with_name(name)
        assert package_files.digest(built) == package_files.digest(before)


def test_every_file_of_the_package_is_inside(slim: Path) -> None:
    names = set(zipfile.ZipFile(slim).namelist())
    files = [path for path in (ROOT / "cortex").rglob("*") if path.is_file()]
    wanted = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert not {name for name in wanted if f"site-packages/{name}" not in names}


def test_no_path_of_the_build_is_inside(slim: Path) -> None:
    build_folder = str(slim.parent).encode()
    with zipfile.ZipFile(slim) as archive:
        assert not [name for name in archive.namelist() if build_folder in archive.read(name)]


def test_it_is_a_program(slim: Path) -> None:
    assert os.access(slim, os.X_OK)
    assert slim.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_it_tells_its_version(slim: Path, cache: Path) -> None:
    done = finished(slim, cache, "version")
    assert done.returncode == 0, done.stderr
    assert cortex.__version__ in done.stdout
    assert f"commit {zipapp.COMMIT[:12]}, slim" in done.stdout


def test_it_tells_which_build_it_is(slim: Path, cache: Path) -> None:
    done = finished(slim, cache, "version", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["commit"], said["dirty"], said["flavour"]) == (zipapp.COMMIT, False, "slim")
    assert said["torch"] is None
    assert said["packages"]["trio"] == trio.__version__


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--interpreter", "python3"),
        ("--interpreter", "/usr/bin/python3 -s -P"),
        ("--interpreter", "/usr/bin/python3\nimport os"),
        ("--interpreter", "/" + "a" * 126),
        ("--commit", "main"),
        ("--commit", "0123456-changed"),
    ],
)
def test_a_line_or_a_commit_that_makes_no_sense_is_refused(option: str, text: str) -> None:
    done = zipapp.build(ROOT, option, text)
    assert done.returncode == 2
    assert option in done.stderr.splitlines()[-1]


def test_the_first_line_is_what_was_asked_for(slim: Path, tmp_path: Path) -> None:
    build = load("packaging_build", ROOT / "packaging" / "build")
    spec = {"name": "cortex.pyz", "compression": 1}
    plain, target = tmp_path / "plain.pyz", tmp_path / "other.pyz"
    shutil.copy(slim, plain)
    build.rewrite(plain, target, tmp_path, spec, "/usr/bin/python3.11 -s")
    assert target.read_bytes().startswith(b"#!/usr/bin/python3.11 -s\n")
    assert zipfile.ZipFile(target).namelist() == zipfile.ZipFile(slim).namelist()


@pytest.mark.parametrize("place", ["top", "below"])
def test_the_commit_is_that_of_the_tree_itself(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = load("packaging_build", ROOT / "packaging" / "build")
    tree = tmp_path / "tree"
    (tree / "cortex").mkdir(parents=True)
    (tree / "cortex" / "__init__.py").write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tree, check=True)
    head = (tree / ".git" / "refs" / "heads").glob("*").__next__().read_text().strip()
    monkeypatch.setattr(build, "ROOT", tree if place == "top" else tree / "cortex")
    assert build.commit_of_tree() == (head if place == "top" else None)
    if place == "top":
        (tree / "notes.txt").write_text("decides no byte")
        assert build.commit_of_tree() == head
        (tree / "cortex" / "new.py").write_text("")
        assert build.commit_of_tree() == f"{head}-dirty"


def test_the_gateway_serves_and_ends_on_sigterm(slim: Path, cache: Path, tmp_path: Path) -> None:
    config = write_gateway_config(tmp_path)
    start = command(slim, "gateway", "--config", str(config))
    with RoleProcess(start, environment(cache), tmp_path) as gateway:
        url = gateway.url_when_listening(seconds=60)
        assert get_json(f"{url}/health")["status"]
        assert gateway.terminate(seconds=20) == 0


def test_a_neuron_without_torch_says_how_to_get_it(slim: Path, cache: Path) -> None:
    done = finished(slim, cache, "neuron")
    assert done.returncode == 2, done.stderr
    assert "torch" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_python_is_told_so_before_anything_is_unpacked(slim: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pyz"
    with zipfile.ZipFile(slim) as old, zipfile.ZipFile(other, "w") as new:
        for name in ("__main__.py", "environment.json"):
            text = old.read(name).decode()
            new.writestr(name, re.sub(r"'cpython-\d+\w*'", "'cpython-399'", text))
    cache = tmp_path / "cache"
    cache.mkdir()
    done = finished(other, cache, "version")
    assert done.returncode == 2
    assert "cpython-399" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(cache.iterdir())


def test_what_runs_before_the_check_can_be_read_by_an_old_python() -> None:
    source = (ROOT / "packaging" / "zipapp_main.py").read_text()
    # f-strings and annotations, the usual stumbling blocks of this file's readers.
    assert not re.search(r"\bf[\"']|->|:=|\bmatch\b .*:$", source, re.MULTILINE)


def load(name: str, path: Path) -> ModuleType:
    """Import the script *path*, which need not be called .py."""
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    specification = importlib.util.spec_from_loader(name, loader)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    return module


def unpacked(cache: Path, name: str, *, last_start: float | None) -> Path:
    """Make what an earlier build left behind; *last_start* is None where none of ours did."""
    folder = cache / name
    (folder / "site-packages").mkdir(parents=True)
    if last_start is not None:
        mark = cache / f".{name}_in_use"
        mark.write_text("")
        os.utime(mark, (last_start, last_start))
    return folder


def test_unused_unpackings_of_earlier_builds_are_removed(slim: Path, cache: Path) -> None:
    now = time.time()
    long_ago = now - 2 * DAY_SECONDS
    unused = unpacked(cache, f"cortex.pyz_{'1' * 64}", last_start=long_ago)
    running = unpacked(cache, f"cortex.pyz_{'2' * 64}", last_start=long_ago)
    recent = unpacked(cache, f"cortex.pyz_{'3' * 64}", last_start=now)
    unmarked = unpacked(cache, f"cortex.pyz_{'4' * 64}", last_start=None)
    foreign = unpacked(cache, f"other.pyz_{'5' * 64}", last_start=long_ago)
    with (cache / f".{running.name}_in_use").open() as mark:
        fcntl.flock(mark, fcntl.LOCK_SH)
        assert finished(slim, cache, "version").returncode == 0
        assert not unused.exists()
        assert not (cache / f".{unused.name}_in_use").exists()
        assert all(folder.exists() for folder in (running, recent, unmarked, foreign))
    assert finished(slim, cache, "version").returncode == 0
    assert not running.exists()


def test_a_full_disk_is_told_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = load("zipapp_main", ROOT / "packaging" / "zipapp_main.py")
    monkeypatch.setattr(main, "BUILD", {"unpacked_mb": 1 << 40})
    assert "set SHIV_ROOT" in main.announce_unpacking(str(tmp_path), "cortex.pyz_0")
    (tmp_path / "cortex.pyz_0").mkdir()
    assert main.announce_unpacking(str(tmp_path), "cortex.pyz_0") is None


def test_nothing_is_run_from_a_folder_that_others_can_write_to(slim: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    done = finished(slim, shared, "version")
    assert done.returncode == 2
    assert "set SHIV_ROOT" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(shared.iterdir())


def test_nothing_is_run_from_a_folder_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = load("zipapp_main", ROOT / "packaging" / "zipapp_main.py")
    tmp_path.chmod(0o775)  # a group of one's own is usual
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert main.untrusted(str(tmp_path)) is None
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    said = main.untrusted(str(tmp_path))
    assert (said is None) == (owner == 0)  # root may put there what it likes
