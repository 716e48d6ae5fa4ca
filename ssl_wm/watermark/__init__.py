"""The composite watermark: key, mixers, composites, losses and the embedders."""
