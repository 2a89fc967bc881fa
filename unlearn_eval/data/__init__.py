"""Which questions there are and where they come from: forget sets, benchmarks, the shapes of a prompt."""
