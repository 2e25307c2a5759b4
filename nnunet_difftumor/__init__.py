"""Synthetic tumours inside nnU-Net v2: the third stage of nnunet-difftumor."""

DISTRIBUTION = "nnunet-difftumor"
__version__ = "0.1.0"
