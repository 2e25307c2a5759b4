"""nnU-Net's prediction on a CPU with the network in bfloat16.

nnU-Net predicts patch by patch, and for a single small patch PyTorch's float32 convolutions take a slow path.
"""

from __future__ import annotations


def main() -> None:
    """Run nnUNetv2_predict_from_modelfolder with the arguments of this program."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder

    with torch.autocast("cpu", dtype=torch.bfloat16):
        predict_entry_point_modelfolder()


if __name__ == "__main__":
    main()
