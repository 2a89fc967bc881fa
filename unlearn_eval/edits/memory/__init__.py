"""Edits that decide at inference time: a memory beside one layer or notes before a prompt, and the routing to them."""
