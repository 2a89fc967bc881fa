"""Pages, tables and figures; they only read result files."""
