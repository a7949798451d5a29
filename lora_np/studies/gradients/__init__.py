"""Is each hand-derived gradient the gradient of its forward function?"""
