"""Memory editors: the weights stay, and a memory beside one layer answers the prompts that are its own."""
