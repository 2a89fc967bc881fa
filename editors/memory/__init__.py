"""Memory editors: the weights stay unchanged, and a memory beside one layer answers the prompts routed to it."""
