"""Where vLLM is imported: edits in its engine, as a model of lm-eval and behind its server."""
