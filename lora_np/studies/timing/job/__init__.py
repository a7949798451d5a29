"""A whole fine-tuning job in this library and in PyTorch with PEFT: two scripts, and the study that times them."""
