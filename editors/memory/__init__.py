"""Memory editors: the weights stay unchanged; a memory beside one layer or notes answer the prompts routed to them."""
