"""Forecasts of full fine-tuning against a bank of true runs: `bank` makes the runs, `plan` lists them."""
