"""The run folder: what each file of it is called and holds, written and read."""
