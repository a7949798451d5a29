"""How much fits into a rank?"""
