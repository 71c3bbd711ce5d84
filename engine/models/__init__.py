"""Decoder-only transformers as plain functions over weights."""
