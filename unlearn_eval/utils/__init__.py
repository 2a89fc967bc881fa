"""What any project needs: errors with a hint, strict JSON, whole writes, settings from text, provenance."""
