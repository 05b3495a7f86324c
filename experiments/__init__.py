"""``python dev.py experiment NAME``: studies of the method, each one command, from training to a report with figures and numbers."""
