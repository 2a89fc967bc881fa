"""Attacks, one file each; the file is all that registers an attack."""
