"""The tumours that are compared."""
