"""Arms, annotation counts and folds, from one file to trained and compared runs."""
