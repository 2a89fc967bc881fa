"""Pages, tables and figures, made from result files alone."""
