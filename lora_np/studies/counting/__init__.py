"""How many parameters, how many bytes, how many operations?"""
