"""Localization methods, one file each; the file is all that registers a method."""
