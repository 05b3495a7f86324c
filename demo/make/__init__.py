"""How the demo model is made, from openly licensed art to weights: ``python -m demo.make``. Needs ``requirements.txt`` beside this file."""
