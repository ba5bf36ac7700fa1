"""Models to and from other libraries: PyTorch's names, vocabularies, safetensors files."""
