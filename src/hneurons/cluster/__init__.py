"""The studies over several machines: replicas of the model, and shards of the work that they share."""
