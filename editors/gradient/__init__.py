"""Gradient methods: weights trained on an objective over what to forget and what to retain."""
