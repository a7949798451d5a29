"""Which learning rate, which α, which layers, which dropout?"""
