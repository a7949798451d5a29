"""Why is a low rank enough?"""
