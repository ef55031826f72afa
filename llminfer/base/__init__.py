"""What every other room stands on: errors, arrays, random streams, the run cache."""
