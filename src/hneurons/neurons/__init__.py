"""What a neuron contributes, the probe over it, and the card that holds the result."""
