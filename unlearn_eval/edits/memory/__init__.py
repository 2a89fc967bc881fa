"""Edits that decide at inference time: a memory beside one layer, notes or prefixes, and the routing to them."""
