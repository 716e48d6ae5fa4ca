"""Images: one spec string to uint8 pixels and labels, and augmented views of whole batches."""
