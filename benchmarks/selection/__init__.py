"""Does the forecast rank rules as true runs do? `truth` trains; `scale` times 100,000 pairs."""
