"""Does LoRA reach what full fine-tuning reaches?"""
