"""Whether what was forgotten comes back."""
