"""Whole runs, which join the other rooms: one edit, one evaluation, one fine-tuning, the demo, a study."""
