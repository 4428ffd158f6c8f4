"""The experiments that this project began as: repeated, measured, and carried on. Files, in the order of the work:

``cells`` trains one network on one number of pictures with one loss; ``measuring`` takes its bytes and its quality;
``information`` asks how few bytes there could be; ``results`` holds what was measured; ``findings`` compares it with
``reported``; ``tables``, ``figures`` and ``writing`` show it.
"""
