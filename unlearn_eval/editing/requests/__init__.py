"""Forget items as token ids: the prompt, the target answer, and the token where the fact is looked up."""
