"""The expected peak against the measured one: a real run of a narrow model, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import comfy.cli_args, torch
comfy.cli_args.args.cpu = not torch.cuda.is_available()
from pathlib import Path
from bench import contenders
contenders.load_pack(Path(sys.argv[2]))
run = contenders.ours(contenders.narrow_sd15(Path(sys.argv[3])), 48, method="palp", steps=2, gradient_checkpointing=sys.argv[4])
with torch.inference_mode():
    outcome = run()
print(outcome.expected_memory, outcome.peak_memory)
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_the_expected_peak_is_within_ten_percent_of_the_measured_one(tmp_path, checkpoint, checkpointing):
    command = [sys.executable, "-c", RUN, os.environ["COMFYUI_PATH"], str(ROOT), str(checkpoint), checkpointing]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    expected, measured = map(int, done.stdout.splitlines()[-1].split())
    assert expected == pytest.approx(measured, rel=0.1)
