"""How fast is a training step, compared with full fine-tuning and with PyTorch and PEFT?"""
