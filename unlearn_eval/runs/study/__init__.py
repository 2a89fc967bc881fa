"""Studies: many cells from one YAML file, each computed once.

`cells/` holds whatever can change a result, and is part of every cell's key; the files here plan, show and schedule.
"""
