"""Memory editing: the values that a memory returns, and calibration of when it answers."""
