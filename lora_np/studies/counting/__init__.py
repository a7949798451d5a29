"""How many parameters, bytes and operations does fine-tuning need?"""
