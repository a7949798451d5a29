"""The process that runs a student's program. The process imports NumPy and, of lora_np, only this folder. Therefore its
memory contains no solution.

The files of this folder:

    restrict.py   gives up rights: files, network, processes, time and memory
    wire.py       values as JSON between the grader and the process
    execute.py    executes the statements of a program, and describes exceptions
    child.py      the main loop: receive arguments, call the student's function, reply with its result
"""
