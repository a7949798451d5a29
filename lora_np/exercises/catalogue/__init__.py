"""The cases and the known mistakes of each exercise, one file per source in sources/."""
