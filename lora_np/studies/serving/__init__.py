"""What do merging and serving many adapters cost?"""
