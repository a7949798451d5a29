"""Wrong answers as students write them, a file for each exercise: ANSWERS by the mistake's name, and UNKNOWN ones."""
