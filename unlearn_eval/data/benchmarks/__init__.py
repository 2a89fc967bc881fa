"""One benchmark in each file, found by its name (`data.registry`): a new file is all that registers one."""
