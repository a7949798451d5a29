"""Which learning rate, α, layers and dropout suit LoRA?"""
