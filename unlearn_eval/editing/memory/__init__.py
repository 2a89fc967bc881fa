"""Shared by the memory editors: the values that a memory returns, and when it stays silent."""
