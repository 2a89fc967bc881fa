"""One attack a file; the file is all that registers it."""
