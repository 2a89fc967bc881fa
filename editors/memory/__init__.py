"""Memory editors: the weights stay unchanged; a memory beside one layer, notes or prefixes answer prompts."""
