"""The mathematics: attention, its theorems, their bounds, and the mechanisms at which they stop."""
