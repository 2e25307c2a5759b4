"""The demo: every stage on a small data set, and a report that shows what came out."""
