"""Closed-form editors: one solution of a least-squares problem for each layer."""
