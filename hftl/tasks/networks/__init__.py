"""Networks that a task lays over a checkpoint, and what they are fed: imported when a model is built, not before."""
