"""Closed-form editing: target values, second moments of keys, and the least-squares solver."""
