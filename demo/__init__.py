"""The demo: a small model with subjects, a client of ComfyUI's HTTP interface, and the main job run through both."""
