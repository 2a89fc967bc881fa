"""Models that nobody has edited: loading, prompts, scoring, tracing, and what judges their answers."""
