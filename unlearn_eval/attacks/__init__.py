"""Attempts to recover forgotten facts, and measures of how deep the forgetting goes."""
