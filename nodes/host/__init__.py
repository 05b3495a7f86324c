"""Everything that knows ComfyUI's own modules. When ComfyUI changes, this folder changes."""
