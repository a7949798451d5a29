"""Make pages and figures from tables: the claims, the pictures, the executed notebooks, and one command for all."""
