"""One localization method a file; the file is all that registers it."""
