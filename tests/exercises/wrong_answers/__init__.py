"""Wrong answers as students write them, one file per exercise: ANSWERS by the name of the mistake, and UNKNOWN ones."""
