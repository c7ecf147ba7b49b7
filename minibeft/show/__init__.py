"""Every table, plot and page, and the record of what made a number."""
