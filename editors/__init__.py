"""Editing methods, one file each, in folders by family."""
