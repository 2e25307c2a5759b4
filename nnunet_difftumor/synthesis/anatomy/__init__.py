"""What of a host's anatomy a tumour minds: vessels, the capsule, the depth in the organ, its border."""
