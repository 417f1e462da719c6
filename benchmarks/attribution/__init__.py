"""Attribution and what is built on it, one file a claim."""
