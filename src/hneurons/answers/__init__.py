"""What the model says, whether it is true, and where in the response the claim stands."""
