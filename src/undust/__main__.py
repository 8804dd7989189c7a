"""`python -m undust`: the command line."""

from __future__ import annotations

from undust.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
