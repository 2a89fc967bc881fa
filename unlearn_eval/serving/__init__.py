"""Everything that imports vLLM: edits in its engine, as an lm-eval model, and behind an OpenAI-compatible server."""
