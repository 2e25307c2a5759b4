"""Other networks."""
