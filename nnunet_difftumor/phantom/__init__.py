"""A CT phantom of the upper abdomen, written as an nnU-Net raw data set."""
