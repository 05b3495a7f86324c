"""``python dev.py bench``: what a step costs, side by side with the host's own trainer and with diffusers + peft, in one run."""

CHECKPOINT = "palp_sd15_narrow_random.safetensors"
"""What ``bench.random_checkpoint`` makes; the tests use it too."""
PICTURE = "chelsea.png"
"""The input picture beside it, see ``demo/NOTICE.md``."""
