"""`__main__.py` of cortex.pyz: what runs before anything is unpacked.

Says in one line when the archive was built for another Python or machine, marks its unpacked
files as in use, removes those of earlier builds that nobody uses, and hands over to shiv.
Standard library only, in a syntax that any Python can read: an old one must get as far as the line.
"""

import os
import platform
import re
import sys
import time

# name, python, tag, system, machine, build_id, unpacked_mb: filled in by packaging/build.
BUILD = None


DAY_SECONDS = 24 * 3600
# Held open, and with it the shared lock on it, until this process ends.
IN_USE = []


def this_tag():
    """Name the binary interface of the running Python, `cpython-311` for instance."""
    return (getattr(sys.implementation, "cache_tag", "") or "") + getattr(sys, "abiflags", "")


def refusal():
    """Return the line that says why this Python cannot run the archive, or None."""
    tag = this_tag() if sys.version_info >= (3,) else "python-2"
    here = (tag, platform.system(), platform.machine())
    wanted = (BUILD["tag"], BUILD["system"], BUILD["machine"])
    if here == wanted:
        return None
    describe = "%s (%s) on %s %s"
    return "cortex: %s was built for %s; this is %s. Start it with %s, or build one for here" % (
        BUILD["name"],
        describe % ((BUILD["python"],) + wanted),
        describe % (("Python " + platform.python_version(),) + here),
        BUILD["python"],
    )


def cache_root():
    """Return the folder into which shiv unpacks."""
    root = os.environ.get("SHIV_ROOT") or "~/.shiv"
    if root.startswith("$"):
        root = os.environ.get(root[1:], root[1:])
    return os.path.expanduser(root)


def lock_path(root, folder):
    """Return the file whose lock says that the unpacked *folder* is in use."""
    return os.path.join(root, "." + folder + "_in_use")


def mark_in_use(root, folder):
    """Take the shared lock on *folder* for the life of this process."""
    import fcntl

    path = lock_path(root, folder)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            current = os.stat(path).st_ino
        except OSError:
            current = None
        if current == os.fstat(descriptor).st_ino:
            os.utime(path, None)
            IN_USE.append(descriptor)
            return
        os.close(descriptor)  # removed with its folder between the two calls: make it anew


def remove_if_unused(root, folder):
    """Remove the unpacked *folder* when nobody runs from it and nobody has started it for a day."""
    import fcntl
    import shutil

    path = lock_path(root, folder)
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return  # never marked by one of ours: leave it alone
    try:
        if time.time() - os.fstat(descriptor).st_mtime < DAY_SECONDS:
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Aside first: a removal that is cut short must not leave half of it under a valid name.
        aside = os.path.join(root, "." + folder + ".removed")
        os.rename(os.path.join(root, folder), aside)
        shutil.rmtree(aside, ignore_errors=True)
        os.unlink(path)
    except OSError:
        pass  # in use, or not ours to remove: the next start looks again
    finally:
        os.close(descriptor)


def remove_earlier_builds(root, own):
    """Remove unused unpackings of other builds of the archive of this name."""
    name = own.rpartition("_")[0]
    pattern = re.compile(re.escape(name) + "_[0-9a-f]{64}$")
    for folder in os.listdir(root):
        if folder != own and pattern.match(folder):
            remove_if_unused(root, folder)


def untrusted(root):
    """Return the line to end with where others could put into *root* what we would run, or None."""
    found = os.stat(root)
    if found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o002:
        return None
    return (
        "cortex: %s belongs to another user or can be written to by all, and code is run from"
        " there: set SHIV_ROOT to a folder of your own" % root
    )


def announce_unpacking(root, own):
    """Say that the first start takes longer; return the line to end with if there is no room."""
    import shutil

    if os.path.isdir(os.path.join(root, own)):
        return None
    free = shutil.disk_usage(root).free // 2**20
    if free < BUILD["unpacked_mb"]:
        return (
            "cortex: unpacking needs %d MB in %s and %d MB are free: make room or set SHIV_ROOT"
            % (
                BUILD["unpacked_mb"],
                root,
                free,
            )
        )
    if BUILD["unpacked_mb"] > 200:  # below that it is over before the line is read
        sys.stderr.write("cortex: unpacking %d MB to %s, once\n" % (BUILD["unpacked_mb"], root))
    return None


def prepare():
    """Do everything that comes before shiv; return the line to end with, or None."""
    line = refusal()
    if line is not None:
        return line
    root = cache_root()
    own = os.path.basename(os.path.realpath(sys.argv[0])) + "_" + BUILD["build_id"]
    try:
        os.makedirs(root, exist_ok=True)
        line = untrusted(root)
        if line is not None:
            return line
        mark_in_use(root, own)
        remove_earlier_builds(root, own)
        return announce_unpacking(root, own)
    except OSError as error:
        if os.path.isdir(os.path.join(root, own)):
            return None  # unpacked by somebody else into a folder that we may only read
        return "cortex: cannot unpack into %s (%s): set SHIV_ROOT" % (root, error)


if __name__ == "__main__":
    message = prepare()
    if message is not None:
        sys.stderr.write(message + "\n")
        sys.exit(2)

    import _bootstrap

    _bootstrap.bootstrap()
