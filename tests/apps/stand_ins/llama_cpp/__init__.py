"""A stand-in for llama-cpp-python 0.3.36: modules, signatures and results of what stagetrace patches, without a model.

The library itself is compiled for minutes; `tests/instrumentation/test_llama_cpp.py` runs it where it is installed.
"""

from llama_cpp.llama import Llama

__all__ = ["Llama"]
