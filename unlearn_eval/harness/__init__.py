"""Where lm-evaluation-harness is imported: our tasks, the model `edited`, and running both."""
