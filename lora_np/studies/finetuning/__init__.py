"""What does a real language model learn and forget in fine-tuning?"""
