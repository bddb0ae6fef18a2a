"""Debian packages, made by dpkg-deb from a staged folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from shipping import archive
from shipping.changelog import MAINTAINER
from shipping.errors import run
from shipping.layout import FLAVOURS, PROGRAMS, Entry, Kind, holds_archive
from shipping.stage import Job, make_folders, stage

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SUMMARIES = {
    "cortex": "GPU hosts as one OpenAI- and Anthropic-compatible API",
    "cortex-neuron": "neuron of cortex: unit and configuration",
    "cortex-neuron-cpu": "neuron of cortex: the program, with torch for the CPU",
    "cortex-neuron-cuda": "neuron of cortex: the program, with torch for CUDA",
}
DESCRIPTIONS = {
    "cortex": "The gateway and the command line. A gateway serves the models of a fleet of\n"
    " neurons, one on each host with a GPU, and has them loaded where they fit.",
    "cortex-neuron": "A neuron owns the models of one host. This package has what is the same\n"
    " for each build of it; the program is in cortex-neuron-cpu or -cuda.",
    "cortex-neuron-cpu": "A neuron owns the models of one host. This one computes them on its\n"
    " processor.",
    "cortex-neuron-cuda": "A neuron owns the models of one host. This one computes them on its\n"
    " NVIDIA GPUs.",
}


def relations(package: str, version: str, python: str) -> dict[str, str]:
    """The fields that say what *package* needs beside it. *python* is a minor version, of which
    the compiled parts of the archive are; empty where the package holds none."""
    tools = "systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles"
    if not holds_archive(package):
        either = " | ".join(f"{package}-{flavour} (= {version})" for flavour in FLAVOURS)
        return {"Depends": tools, "Recommends": either}
    own = f"python3 (>= {python}), python3 (<< 3.{int(python.partition('.')[2]) + 1})"
    if package == "cortex":
        return {"Depends": f"{own}, {tools}"}
    others = ", ".join(f"cortex-neuron-{each}" for each in FLAVOURS if not package.endswith(each))
    return {
        "Depends": f"{own}, cortex-neuron (= {version})",
        "Conflicts": others,
        "Replaces": others,
        # What the kernels are compiled with; without it torch computes, slower.
        "Recommends": "gcc" if package.endswith("cpu") else f"gcc, python{python}-dev",
    }


def control(job: Job, size: int) -> str:
    """The control file; *size* is that of the installed files in bytes."""
    version = f"{job.stamp.version}-1"
    python, architecture = "", "all"
    if job.zipapp is not None:
        facts = archive.facts_of(job.zipapp)
        python, architecture = facts.python, ARCHITECTURES.get(facts.machine, facts.machine)
    fields = {
        "Package": job.package,
        "Version": version,
        "Architecture": architecture,
        "Maintainer": MAINTAINER,
        "Installed-Size": str(-(-size // 1024)),
        **relations(job.package, version, python),
        "Section": "net",
        "Priority": "optional",
        "Homepage": "https://github.com/cortex-serving/cortex",
        "Description": f"{SUMMARIES[job.package]}\n {DESCRIPTIONS[job.package]}",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def scripts(job: Job, entries: list[Entry]) -> dict[str, str]:
    """The maintainer scripts of a package, by name."""
    folder = job.tree / "packaging" / "deb"
    if job.package not in PROGRAMS:
        return {"postinst": (folder / "flavour.postinst").read_text()}
    program = PROGRAMS[job.package]
    configs = " ".join(entry.path for entry in entries if entry.kind is Kind.CONFIG)
    values = {"@PROGRAM@": program.name, "@UNIT@": program.unit, "@CONFIGS@": configs}
    found = {}
    for name in ("postinst", "prerm", "postrm"):
        text = (folder / name).read_text()
        for mark, value in values.items():
            text = text.replace(mark, value)
        found[name] = text
    return found


def build(job: Job, output: Path) -> Path:
    """Build the package of *job* into the folder *output* and return its file."""
    with tempfile.TemporaryDirectory(prefix=".cortex-deb-", dir=output) as name:
        root = Path(name) / "root"
        make_folders(root)
        entries = stage(job, root)
        meta = root / "DEBIAN"
        make_folders(meta)
        files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        text = control(job, sum(path.stat().st_size for path in files))
        (meta / "control").write_text(text)
        (meta / "md5sums").write_text(sums(root, entries))
        configs = [entry.path for entry in entries if entry.kind is Kind.CONFIG]
        if configs:
            (meta / "conffiles").write_text("".join(f"{path}\n" for path in configs))
        for script, body in scripts(job, entries).items():
            (meta / script).write_text(body)
        for path in meta.iterdir():
            path.chmod(0o755 if path.name in ("postinst", "prerm", "postrm") else 0o644)
        for path in (*meta.iterdir(), meta, root):
            os.utime(path, (job.stamp.epoch, job.stamp.epoch))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(job.stamp.epoch)}
        # Quick: nearly all of it is the zipapp, which is compressed already.
        command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(root)]
        version = f"{job.stamp.version}-1"
        architecture = text.partition("\nArchitecture: ")[2].partition("\n")[0]
        target = output / f"{job.package}_{version}_{architecture}.deb"
        run([*command, str(target)], env=environment)
    return target


def sums(root: Path, entries: list[Entry]) -> str:
    """Debian's list of what was installed, against which a file is checked."""
    lines = []
    for entry in entries:
        if entry.kind in (Kind.CONFIG, Kind.DIRECTORY) or entry.link:
            continue
        path = entry.path.lstrip("/")
        digest = hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest()
        lines.append(f"{digest}  {path}\n")
    return "".join(lines)
