"""A trained model for stock nnU-Net."""
