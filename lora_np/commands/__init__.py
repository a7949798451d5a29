"""The commands, one a file: HELP, `add_arguments(parser)` and `run(arguments)`; what they do lives below, and is imported late."""
