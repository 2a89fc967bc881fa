"""Result files: their schema, reading, writing, comparing; and the reports made from them."""
