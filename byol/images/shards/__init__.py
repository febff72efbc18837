"""Shards: many images in one `.tar` or Parquet file."""
