"""From forget items to token ids: which answer is written, after which prompt, at which token."""
