"""What knows nothing of CT."""
