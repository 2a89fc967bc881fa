"""Edits that decide at inference time: a memory beside one layer, and the routing of prompts to it."""
