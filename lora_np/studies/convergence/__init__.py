"""Does LoRA reach the loss of full fine-tuning?"""
