"""Edits and forget sets."""
