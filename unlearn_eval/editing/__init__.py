"""What several editors share: requests, the locate-then-edit solver, memories, training."""
