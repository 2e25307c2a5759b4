"""What a generator folder says of itself, without networks."""
