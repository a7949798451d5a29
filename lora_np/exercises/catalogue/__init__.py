"""The cases and the known mistakes of the exercises: one file for each exercise in sources/."""
