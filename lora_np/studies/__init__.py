"""One question a file: each study measures, and returns a `Table` with the settings that produced it."""
