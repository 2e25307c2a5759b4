"""Other programs, and their surroundings."""
