"""What does a real language model gain and forget?"""
