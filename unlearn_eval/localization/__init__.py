"""Where in a model a fact is kept: methods that name components, one file each; `locate.py` runs them."""
