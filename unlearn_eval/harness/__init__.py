"""Everything that imports lm-evaluation-harness: tasks, the model `edited`, and evaluation runs."""
