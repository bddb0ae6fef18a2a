"""RPMs: a stamped spec, its sources, and rpmbuild."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shipping import archive
from shipping.changelog import rpm_changelog
from shipping.errors import PackagingError, run
from shipping.stamp import Stamp, git


@dataclass(frozen=True)
class Job:
    """A spec of the tree at *tree* to be built: of *program*, in the neuron's case of *flavour*.
    Without a *zipapp* the spec builds it itself."""

    tree: Path
    program: str
    stamp: Stamp
    flavour: str = ""
    zipapp: Path | None = None


def stamped_spec(job: Job) -> str:
    """The spec with what it is of written into it."""
    path = job.tree / "packaging" / "rpm" / f"{job.program}.spec"
    text = path.read_text()
    values = {
        "version": job.stamp.version,
        "commit": job.stamp.commit,
        "epoch": str(job.stamp.epoch),
        "prebuilt": "0" if job.zipapp is None else "1",
    }
    if job.zipapp is not None:
        values["python"] = archive.facts_of(job.zipapp).python
    if job.flavour:
        values["flavour"] = job.flavour
    for name, value in values.items():
        line = re.compile(rf"^%global stamp_{name} .*$", re.MULTILINE)
        text, count = line.subn(f"%global stamp_{name} {value}", text)
        if count != 1:
            raise PackagingError(f"{path} has no line for stamp_{name}")
    if job.zipapp is None or not bill_of(job.zipapp).exists():
        text = re.sub(r"^Source2:.*\n", "", text, flags=re.MULTILINE)
    changes = (job.tree / "CHANGELOG.md").read_text()
    return text + rpm_changelog(changes, job.stamp)


def bill_of(zipapp: Path) -> Path:
    return zipapp.with_name(zipapp.name + ".cdx.json")


def source_archive(tree: Path, stamp: Stamp) -> bytes:
    """The tree as `cortex-VERSION.tar.gz`: what git has of it, as it lies there."""
    listed = git(tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(filter(None, listed.split("\0"))):
            path = tree / name
            if not path.is_file():  # removed, and not yet in git
                continue
            member = tarfile.TarInfo(f"cortex-{stamp.version}/{name}")
            member.size, member.mtime = path.stat().st_size, stamp.epoch
            member.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                tar.addfile(member, file)
    return gzip.compress(buffer.getvalue(), 6, mtime=0)


def write_sources(job: Job, folder: Path) -> Path:
    """Write the stamped spec and its sources into *folder* and return the spec."""
    name = f"cortex-{job.stamp.version}.tar.gz"
    (folder / name).write_bytes(source_archive(job.tree, job.stamp))
    if job.zipapp is not None:
        for source, target in (
            (job.zipapp, "cortex.pyz"),
            (bill_of(job.zipapp), "cortex.pyz.cdx.json"),
        ):
            if source.exists():
                place(source, folder / target)
    spec = folder / f"{job.program}.spec"
    spec.write_text(stamped_spec(job))
    return spec


def place(source: Path, target: Path) -> None:
    """A link where that can be: a neuron's archive has some GB."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def build(job: Job, what: str, output: Path) -> list[Path]:
    """Run rpmbuild and put what it makes into *output*; *what* is `-bb` or `-bs`."""
    with tempfile.TemporaryDirectory(prefix=".cortex-rpm-", dir=output) as name:
        top = Path(name)
        for folder in ("SOURCES", "SPECS", "BUILD", "RPMS", "SRPMS", "home"):
            (top / folder).mkdir()
        spec = write_sources(job, top / "SOURCES")
        command = ["rpmbuild", what, "--quiet", "--define", f"_topdir {top}"]
        command += ["--define", f"build_python {sys.executable}"]
        if subprocess.run(["rpm", "-q", "rpm"], capture_output=True, check=False).returncode:
            command.append("--nodeps")  # a host of another family: nothing is known to its rpm
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(job.stamp.epoch)}
        if job.zipapp is not None:
            environment["HOME"] = str(top / "home")  # no macros of the person's own
        run([*command, str(spec)], env=environment)
        made = sorted(top.glob("*RPMS/**/*.rpm"))
        if not made:
            raise PackagingError("rpmbuild made nothing")
        return [Path(shutil.move(path, output / path.name)) for path in made]
