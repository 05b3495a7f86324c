"""Where the maker's files are: what it commits, and in ``WORK`` what it does not."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".dev" / "make"
WEIGHTS = ROOT / "demo" / "weights"
SUBJECTS = ROOT / "demo" / "subjects"
