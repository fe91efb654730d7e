"""The model under study: loading it, and finding its feed-forward layers."""
