"""Code that any project needs: errors with a hint, strict JSON, atomic writes, settings from text, provenance."""
