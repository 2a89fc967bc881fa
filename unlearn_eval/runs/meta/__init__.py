"""Meta-evaluation: what each metric is worth, from models of which the truth is known, as an ordinary study."""
