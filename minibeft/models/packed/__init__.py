"""What makes a frozen model fast, apart from what it is."""
