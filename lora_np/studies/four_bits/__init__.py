"""What do four bits a weight cost?"""
