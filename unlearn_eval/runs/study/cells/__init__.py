"""One cell: what it forgets, how it is edited, asked and attacked, and its result.

Every file of this folder is part of every cell's key; those beside it plan, show and schedule, and are not
(`identity.py`). From them only data come in: cells, specifications, places of files.
"""
