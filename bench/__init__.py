"""``python dev.py bench``: what a step costs, side by side with the host's own trainer and with diffusers + peft, in one run."""
