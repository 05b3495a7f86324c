"""What ``dev.py`` is made of: the environment, the ComfyUI host and its base directory. Standard library only."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - says it to those whose Python is too old
    raise SystemExit(f"dev.py needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
