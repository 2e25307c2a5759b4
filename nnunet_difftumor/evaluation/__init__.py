"""Evaluation of a generator: real tumours against generated ones and against simpler ways to make them."""
