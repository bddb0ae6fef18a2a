#!/usr/bin/env python3
"""Writes the dashboards as JSON into a folder: dashboards/ beside this file, or the one named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fleet import fleet
from model import model
from neuron import neuron


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for build in (fleet, model, neuron):
        text = json.dumps(build(), indent=2) + "\n"
        (folder / f"{build.__name__}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
