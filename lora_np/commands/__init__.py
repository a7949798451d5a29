"""The commands of `python -m lora_np`, one file per command.

HELP is its line in the list of commands, USAGE and DESCRIPTION begin its own help page. `add_arguments(parser)` adds its options,
and `run(arguments)` runs it. The library is imported in `run`, so that `--help` is fast.
"""
