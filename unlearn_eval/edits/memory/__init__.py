"""Edits that decide at inference time: the memory beside a layer, and the routing of prompts to it."""
