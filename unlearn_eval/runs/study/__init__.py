"""Studies: many cells from one YAML file, each computed once."""
