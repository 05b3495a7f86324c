"""Where the maker keeps what it does not commit."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".dev" / "make"
WEIGHTS = ROOT / "demo" / "weights"
SUBJECTS = ROOT / "demo" / "subjects"
