"""The studies: each study answers one question by measurements, and returns them as a `Table` with their settings."""
