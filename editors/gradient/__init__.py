"""Gradient methods: weights trained on an objective over the forget set and the retain set."""
