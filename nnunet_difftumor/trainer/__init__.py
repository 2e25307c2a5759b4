"""nnU-Net's trainers."""
