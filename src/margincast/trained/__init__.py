"""What will training every weight do? Forecasts with intervals, from frozen features, a rehearsal and a pilot."""
