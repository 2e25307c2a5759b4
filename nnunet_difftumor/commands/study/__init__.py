"""Commands that run several trainings."""
