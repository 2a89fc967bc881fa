"""Public benchmarks, one file each; the file is all that registers a benchmark."""
