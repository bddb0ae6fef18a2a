"""`python -m cortex`."""

from __future__ import annotations

from cortex.cli.main import main

if __name__ == "__main__":
    main()
