"""Scores of predicted label maps against reference ones: by case, by tumour, by scan without tumour."""
