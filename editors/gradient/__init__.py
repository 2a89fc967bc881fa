"""Gradient methods: weights trained on an objective over what to forget and what to retain."""

from unlearn_eval.utils import moved

__getattr__ = moved.lookup(__name__, ("editing.training.gradient",))  # a user's copy of a method imports it from here
