"""Training for gradient methods: objectives, data, and one run that can be resumed."""
