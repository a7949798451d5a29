"""How the embedded base was made."""
