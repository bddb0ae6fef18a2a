from __future__ import annotations

import os
import stat

import pytest

from cortex.gateway.auth import journal as module
from cortex.gateway.auth.journal import Journal


@pytest.fixture
def journal(tmp_path):
    made = Journal.create(tmp_path)
    yield made
    os.close(made.descriptor)


def test_lines_come_back_in_order_and_once(journal):
    for number in range(5):
        journal.append(b"%d\n" % number)
    lines, journal.applied = journal.lines(1 << 20)
    assert lines == [b"0", b"1", b"2", b"3", b"4"]
    journal.append(b"5\n")
    assert journal.lines(1 << 20) == ([b"5"], journal.size)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 100])
def test_a_limit_cuts_between_lines(journal, limit):
    for number in range(10):
        journal.append(b"%d%d\n" % (number, number))
    found = []
    while journal.applied < journal.size:
        before = journal.applied
        lines, journal.applied = journal.lines(max(limit, 3))
        assert journal.applied > before
        found += lines
    assert found == [b"%d%d" % (n, n) for n in range(10)]


def test_a_long_line_without_an_end_does_not_hold_it_up(tmp_path):
    (tmp_path / "usage-1-x.journal").write_bytes(b"x" * 100)
    (orphan,) = Journal.orphans(tmp_path)
    lengths = []
    while orphan.applied < orphan.size:
        _, end = orphan.lines(30)
        lengths.append(end - orphan.applied)
        orphan.applied = end
    orphan.close()
    assert sum(lengths) == 100


def test_the_file_is_for_its_owner_alone(journal):
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_a_journal_in_use_is_no_orphan_and_one_left_behind_is(tmp_path):
    one, two = Journal.create(tmp_path), Journal.create(tmp_path)
    assert list(Journal.orphans(tmp_path)) == []
    one.append(b"kept\n")
    one.close()  # what the system does when its process ends
    (orphan,) = Journal.orphans(tmp_path)
    assert orphan.lines(100) == ([b"kept"], 5)
    assert list(Journal.orphans(tmp_path)) == []  # it is locked by whoever took it
    orphan.remove()
    two.remove()
    assert list(tmp_path.iterdir()) == []


def test_one_that_somebody_took_for_an_orphan_is_made_anew(tmp_path, monkeypatch):
    """Between the making of a file and its locking, another process may start."""
    real, taken = os.open, []

    def racing(path, flags, mode=0o777):
        descriptor = real(path, flags, mode)
        if not taken and flags & os.O_CREAT:
            taken.append(path)
            for orphan in Journal.orphans(tmp_path):
                orphan.remove()
        return descriptor

    monkeypatch.setattr(module.os, "open", racing)
    made = Journal.create(tmp_path)
    assert taken
    assert made.path != taken[0]
    assert made.path.exists()
    made.remove()


@pytest.mark.parametrize("truncates", [True, False])
def test_a_line_that_is_half_written_does_not_count(journal, monkeypatch, truncates):
    journal.append(b"whole\n")
    real = os.write

    def full(descriptor, data):
        return real(descriptor, data[:4])

    def failing(descriptor, size):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", full)
        if not truncates:
            patch.setattr(module.os, "ftruncate", failing)
        with pytest.raises(OSError, match="4 of 10 bytes"):
            journal.append(b"truncated\n")
    journal.append(b"next\n")
    lines, end = journal.lines(1000)
    assert [line for line in lines if line != b"trun"] == [b"whole", b"next"]
    assert end == journal.size == journal.path.stat().st_size
