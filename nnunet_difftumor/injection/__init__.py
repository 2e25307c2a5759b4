"""A tumour into a batch of nnU-Net."""
