"""Let tests import ``small_models`` from this folder, and make hypothesis draw the same examples everywhere."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.append(str(Path(__file__).parent))
settings.register_profile("palp_train", deadline=None, derandomize=True)
settings.load_profile("palp_train")
