"""How was the base model "tiny" trained?"""
