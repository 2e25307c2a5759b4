"""What stands in the way of a training, told before it starts: environment, data set, cases, generator."""
