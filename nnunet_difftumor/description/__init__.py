"""What the annotated tumours of a raw data set look like against their labels."""
