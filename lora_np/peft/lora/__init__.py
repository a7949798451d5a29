"""LoRA and its variants DoRA and PiSSA. Reading order: config, layer, method, file, dora, pissa."""
