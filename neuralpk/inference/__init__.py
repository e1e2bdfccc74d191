"""Inference: z of every patient given its data and the model, most probable or with all its uncertainty."""
