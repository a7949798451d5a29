"""What do four bits per weight cost?"""
