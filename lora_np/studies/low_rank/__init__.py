"""Why does a low rank suffice?"""
