"""Shared by the closed-form editors: target values, second moments of keys, one least-squares solver."""
