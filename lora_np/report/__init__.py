"""From tables to pages and figures: the claims, the pictures, the notebooks, and all of it again."""
