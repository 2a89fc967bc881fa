"""Where in a model a fact is."""
