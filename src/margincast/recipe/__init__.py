"""How a run is trained: the recipe, its losses, optimizers, schedule and batches."""
