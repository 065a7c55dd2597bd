"""Development only: `holdfast` in a checkout is the repository root itself."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2])]
