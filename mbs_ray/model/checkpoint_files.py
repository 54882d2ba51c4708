"""Names of the files of a Hugging Face checkpoint; importing them loads no library."""

CONFIG = "config.json"
#: Weights in one file.
SINGLE = "model.safetensors"
#: Which of several files holds which weight.
INDEX = "model.safetensors.index.json"
