"""Is each gradient derived by hand the gradient of its forward?"""
