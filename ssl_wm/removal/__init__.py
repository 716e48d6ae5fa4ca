"""What a thief does to wash a watermark off an encoder. Nothing here knows of keys."""
