"""What each bias of a configuration can do, read off config.json: verdicts, reasons, witnesses."""
