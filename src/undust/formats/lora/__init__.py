"""LoRA files of all families, read for the model that they change.

`names` says which module a key means, `factors` what the tensors of one module make together, and
`file` reads a whole file. The mathematics is in `undust.adapters.lora`.
"""
