"""The studies: existence, impact and origin of H-Neurons, each over a run folder."""
