"""The demo: a small model with subjects, a client of ComfyUI's HTTP interface, and the main job run through both; for tests, a checkpoint of random weights."""

CHECKPOINT = "palp_demo_sd15_narrow_random.safetensors"
PICTURE = "chelsea.png"
