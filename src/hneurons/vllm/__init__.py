"""What runs inside vLLM: pooled features, the dial and the monitor. Written against vLLM's internals: see engine.py.

`features.py` measures contributions with an engine that is already loaded; it imports nothing above `neurons`.
`plugin.py` is the `vllm.general_plugins` entry point: the dial and the monitor inside a server. `replies.py` tells a
server's clients the risks. Nothing here imports vLLM before it is needed.
"""
