"""Utility, watermark readers, statistics and the verdict."""
