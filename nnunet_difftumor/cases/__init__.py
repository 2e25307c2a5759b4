"""Which cases train."""
