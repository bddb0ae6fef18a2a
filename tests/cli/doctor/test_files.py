"""Room and rights: a full disk, a read-only one, and what others can read."""

from __future__ import annotations

import errno
import os
import resource
import signal
from types import SimpleNamespace

import pytest

from cortex.cli.doctor import files
from cortex.cli.doctor.report import FAILED, OK, WARNING, Judge

JUDGE = Judge("gateway")


def room(free: int, **more: int):
    fields = {"f_bavail": free, "f_frsize": 1, "f_favail": 9, "f_files": 9, "f_flag": 0}
    return lambda _: SimpleNamespace(**(fields | more))


@pytest.mark.parametrize(
    ("free", "state"), [(1 << 20, FAILED), (500 << 20, WARNING), (50 << 30, OK)]
)
def test_little_room_is_a_warning_and_less_a_failure(tmp_path, free, state):
    finding = files.folder(JUDGE, "state", tmp_path, files.STATE, room(free))
    assert finding.state == state
    assert bool(finding.advice) == (state != OK)
    assert not list(tmp_path.iterdir())


def test_no_inodes_are_a_failure(tmp_path):
    found = files.folder(JUDGE, "state", tmp_path, files.STATE, room(50 << 30, f_favail=0))
    assert (found.state, "inode" in found.detail) == (FAILED, True)


def test_a_disk_that_takes_nothing_is_a_failure_whatever_it_says(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        finding = files.folder(JUDGE, "state", tmp_path, files.STATE, room(50 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (finding.state, "File too large" in finding.detail) == (FAILED, True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_made_at_start_is_judged_where_it_will_be(tmp_path):
    place = tmp_path / "a" / "b"
    finding = files.folder(JUDGE, "state", place, files.STATE, room(50 << 30))
    assert (finding.state, "made at start" in finding.detail) == (OK, True)
    assert not place.exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    finding = files.folder(JUDGE, "state", blocked / "c", files.STATE, room(50 << 30))
    assert (finding.state, "is no folder" in finding.detail) == (FAILED, True)


def test_code_is_loaded_from_places_of_ones_own_that_are_not_noexec(tmp_path):
    tmp_path.chmod(0o700)
    assert files.executable(JUDGE, tmp_path, room(1)).state == OK
    noexec = files.executable(JUDGE, tmp_path, room(1, f_flag=os.ST_NOEXEC))
    assert (noexec.state, "noexec" in noexec.detail) == (FAILED, True)
    tmp_path.chmod(0o770)
    assert files.executable(JUDGE, tmp_path, room(1)).state == FAILED


TOKEN = "[[neurons]]\nname = 'a'\nendpoint = 'http://x'\ntoken = 's3cret'\n"


@pytest.mark.parametrize(
    ("text", "mode", "state"),
    [(TOKEN, 0o640, OK), (TOKEN, 0o644, WARNING), ("", 0o644, OK), ("", 0o666, FAILED)],
)
def test_a_configuration_with_a_token_is_not_for_everybody(tmp_path, text, mode, state):
    path = tmp_path / "cortex.toml"
    path.write_text(text)
    path.chmod(mode)
    (finding,) = files.configuration(JUDGE, path)
    assert finding.state == state
    assert "s3cret" not in finding.detail + finding.advice


def test_a_secret_file_is_its_owners_and_groups_alone(tmp_path):
    path = tmp_path / "token"
    assert files.secret_file(JUDGE, "token_file", path).state == FAILED
    path.write_text("x")
    for mode, state in ((0o640, OK), (0o644, FAILED)):
        path.chmod(mode)
        assert files.secret_file(JUDGE, "token_file", path).state == state


def test_the_state_directory_has_an_owner_and_a_database_that_nobody_else_reads(tmp_path):
    (tmp_path / "accounts.db").write_text("")
    (tmp_path / "accounts.db").chmod(0o600)
    tmp_path.chmod(0o750)
    assert [each.state for each in files.state(JUDGE, tmp_path)] == [OK]
    (tmp_path / "accounts.db").chmod(0o644)
    assert [each.state for each in files.state(JUDGE, tmp_path)] == [OK, FAILED]
    tmp_path.chmod(0o777)
    assert next(files.state(JUDGE, tmp_path)).state == FAILED
    assert not list(files.state(JUDGE, tmp_path / "nowhere"))


def test_a_folder_that_a_unit_will_make_is_a_warning_where_this_user_cannot(tmp_path, monkeypatch):
    def refuse(directory):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "_write", refuse)
    there = files.folder(JUDGE, "state", tmp_path, files.STATE, room(50 << 30))
    made = files.folder(JUDGE, "state", tmp_path / "cortex", files.STATE, room(50 << 30))
    assert (there.state, made.state) == (FAILED, WARNING)
