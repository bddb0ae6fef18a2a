"""The stamp: from the build's files, else from the checkout that the package lies in."""

import subprocess

import pytest

from cortex.service import stamp
from cortex.service.stamp import Stamp


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "tree" / "cortex"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def checkout(package):
    """*package* in what looks like a checkout that git has just made."""
    (package.parent / "pyproject.toml").write_text("")
    (package.parent / ".git" / "refs" / "heads").mkdir(parents=True)
    (package.parent / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    return package


def test_a_build_says_its_commit_and_flavour(checkout):
    (checkout / "flavour.txt").write_text("slim\n")
    (checkout / "commit.txt").write_text("0123456789abcdef\n")
    assert stamp.read(checkout) == Stamp("slim", "0123456789abcdef", False)
    assert stamp.read(checkout).short() == "0123456789ab"
    (checkout / "commit.txt").write_text("0123456789abcdef-dirty\n")
    assert stamp.read(checkout) == Stamp("slim", "0123456789abcdef", True)
    assert stamp.read(checkout).short() == "0123456789ab-dirty"


def test_a_build_of_an_unknown_commit_does_not_take_that_of_a_checkout_around_it(checkout):
    (checkout.parent / ".git" / "HEAD").write_text("123\n")
    (checkout / "flavour.txt").write_text("slim\n")
    assert stamp.read(checkout) == Stamp("slim", None, None)


def test_a_wheel_of_somebody_says_nothing(package):
    assert stamp.read(package) == Stamp("installed")
    assert stamp.read(package).short() is None


def test_a_checkout_says_where_its_branch_is(checkout):
    git = checkout.parent / ".git"
    assert stamp.read(checkout) == Stamp("checkout")
    (git / "packed-refs").write_text("# pack\nabc refs/heads/main\n")
    assert stamp.read(checkout) == Stamp("checkout", "abc")
    (git / "refs" / "heads" / "main").write_text("def\n")
    assert stamp.read(checkout) == Stamp("checkout", "def")
    (git / "HEAD").write_text("123\n")
    assert stamp.read(checkout) == Stamp("checkout", "123")


def test_a_worktree_of_git_says_the_commit_of_its_own_branch(tmp_path):
    main, tree = tmp_path / "main", tmp_path / "tree"
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]

    def git(folder, *words):
        done = subprocess.run(
            ["git", *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    main.mkdir()
    (main / "pyproject.toml").write_text("")
    git(main, "init", "-q")
    git(main, "add", ".")
    git(main, *who, "commit", "-qm", "one")
    git(main, "worktree", "add", "-q", "-b", "other", str(tree))
    git(tree, *who, "commit", "-q", "--allow-empty", "-m", "two")
    wanted = git(tree, "rev-parse", "HEAD")
    assert stamp.read(tree / "cortex").commit == wanted
    git(main, "pack-refs", "--all")
    assert stamp.read(tree / "cortex").commit == wanted
