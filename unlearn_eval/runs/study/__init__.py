"""A study: many cells from one YAML file, each done once."""
