"""The page, its figures and tables."""
