"""What one notebook needs and is worth a test."""
