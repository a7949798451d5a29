"""The commands of `python -m lora_np`, one file per command.

HELP is the command's line in the list of commands; USAGE and DESCRIPTION begin the help page of the command.
`add_arguments(parser)` adds the options, and `run(arguments)` runs the command. The library is imported in `run`, so
that `--help` is fast.
"""
