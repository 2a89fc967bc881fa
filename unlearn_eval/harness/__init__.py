"""Everything that touches lm_eval; no other part of the package imports it."""
