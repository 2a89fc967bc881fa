"""Shared by the gradient methods: objectives, data, one training run that can be resumed."""
