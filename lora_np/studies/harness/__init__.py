"""What all studies share: tables, finished runs, workers, comparisons in pairs, the pictures' style, and the two standard tasks."""
