"""Closed-form editors: one least-squares solution for each edited layer."""
