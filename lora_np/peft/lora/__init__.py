"""LoRA, and its relatives DoRA and PiSSA. Reading order: config, layer, method, file, dora, pissa."""
