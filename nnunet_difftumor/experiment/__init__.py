"""Studies with matched arms: planned, trained, compared."""
