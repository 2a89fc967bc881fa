"""Does it come back? Attacks on an unlearned model, each a file; `base.py` says what they are given and give."""
