"""LoRA, whole: its configuration, its layer, its file, mixed batches, combinations, and its relatives DoRA and PiSSA."""
