"""Code shared by all studies: tables, parallel runs, comparisons by seed, the style of pictures, two standard tasks."""
