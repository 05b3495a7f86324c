"""The demo: a checkpoint of random weights, a client of ComfyUI's HTTP interface, and the main job run through both."""

CHECKPOINT = "palp_demo_sd15_narrow_random.safetensors"
PICTURE = "chelsea.png"
